//! Finds the token counts in a provider's answer as it passes, whichever dialect it speaks.

use memchr::memmem;

/// End of every key that counts tokens. Within a text of the answer the quote would be escaped, so what
/// a model says is never taken for a count.
const KEY_END: &[u8] = br#"_tokens":"#;
/// Kept of what passed: a key and its number may be cut in two.
const TAIL_BYTES: usize = 64;

/// The largest counts seen so far: streams repeat them as they grow.
#[derive(Debug, Default)]
pub(super) struct Usage {
    tail: Vec<u8>,
    input: u64,
    output: u64,
    total: u64,
}

impl Usage {
    /// Looks at the next bytes.
    pub(super) fn see(&mut self, data: &[u8]) {
        self.tail.extend_from_slice(data);
        let text = &self.tail;
        for at in memmem::find_iter(text, KEY_END) {
            let begin = text[..at].iter().rposition(|byte| *byte == b'"');
            let slot = match begin.map(|begin| &text[begin + 1..at]) {
                Some(b"prompt" | b"input") => &mut self.input,
                Some(b"completion" | b"output") => &mut self.output,
                Some(b"total") => &mut self.total,
                _ => continue,
            };
            let number = text[at + KEY_END.len()..]
                .iter()
                .skip_while(|byte| **byte == b' ')
                .take_while(|byte| byte.is_ascii_digit())
                .fold(0_u64, |sum, byte| {
                    sum.saturating_mul(10)
                        .saturating_add(u64::from(byte - b'0'))
                });
            *slot = number.max(*slot);
        }
        let surplus = self.tail.len().saturating_sub(TAIL_BYTES);
        self.tail.drain(..surplus);
    }

    /// All tokens, if any were told.
    pub(super) fn tokens(&self) -> Option<u64> {
        let all = self.total.max(self.input.saturating_add(self.output));
        (all > 0).then_some(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(answer: &str, cut: usize) -> Option<u64> {
        let mut usage = Usage::default();
        for piece in answer.as_bytes().chunks(cut) {
            usage.see(piece);
        }
        usage.tokens()
    }

    #[test]
    fn counts_of_every_dialect_are_found_however_they_are_cut() {
        for (answer, expected) in [
            (
                r#"{"usage":{"prompt_tokens":12,"completion_tokens": 30,"total_tokens":42,"prompt_tokens_details":{"cached_tokens":9000}}}"#,
                Some(42),
            ),
            (
                "data: {\"message\":{\"usage\":{\"input_tokens\":100,\"output_tokens\":1}}}\n\ndata: {\"usage\":{\"output_tokens\":250}}\n\n",
                Some(350),
            ),
            (
                r#"{"choices":[{"delta":{"content":"{\"total_tokens\":99}"}}]}"#,
                None,
            ),
            (r#"{"total_tokens":null}"#, None),
            (
                r#"{"total_tokens":99999999999999999999999}"#,
                Some(u64::MAX),
            ),
        ] {
            for cut in [1, 7, 4096] {
                assert_eq!(tokens(answer, cut), expected, "{cut} {answer}");
            }
        }
    }
}
