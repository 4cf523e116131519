//! Strict JSON: what every header and every inner frame must be (protocol 5.2).
//!
//! [`check`] refuses what two readers could understand differently: duplicate keys, integers above
//! 2^53-1, lone surrogates, depth above 32. It allocates only for objects with many keys or escaped
//! ones, so it may run on every record.

use std::{borrow::Cow, collections::HashSet};

use serde::Deserialize;

use super::limits::{JSON_DEPTH, JSON_INTEGER_MAX};

/// Why bytes are not JSON as this protocol wants it. A `protocol_error` of whoever wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Not UTF-8, overlong forms included.
    #[error("not UTF-8")]
    Utf8,
    /// Not JSON.
    #[error("not JSON")]
    Syntax,
    /// More nested than allowed.
    #[error("nested too deeply")]
    Depth,
    /// One object names a key twice.
    #[error("duplicate key")]
    DuplicateKey,
    /// An integer that a double cannot hold exactly.
    #[error("integer above 2^53-1")]
    Integer,
    /// Half of a UTF-16 pair.
    #[error("lone surrogate")]
    Surrogate,
    /// Valid, but not the object that is wanted here.
    #[error("not the expected object")]
    Shape,
}

/// Checks one JSON text and hands it back as a string.
///
/// # Errors
/// [`JsonError`].
pub fn check(bytes: &[u8]) -> Result<&str, JsonError> {
    let text = std::str::from_utf8(bytes).map_err(|_| JsonError::Utf8)?;
    let mut reader = Reader { text, bytes, at: 0 };
    reader.space();
    reader.value(0)?;
    reader.space();
    if reader.at == bytes.len() {
        Ok(text)
    } else {
        Err(JsonError::Syntax)
    }
}

/// [`check`], then reads a value that may borrow from `bytes`.
///
/// # Errors
/// [`JsonError`]; [`JsonError::Shape`] when it is not what `T` wants.
pub fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, JsonError> {
    serde_json::from_str(check(bytes)?).map_err(|_| JsonError::Shape)
}

/// The same for what must be an object: a list would be taken for one without names.
///
/// # Errors
/// [`JsonError`].
pub fn object<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, JsonError> {
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        parse(bytes)
    } else {
        Err(JsonError::Shape)
    }
}

/// Appends `text` as a JSON string.
pub fn put_string(buffer: &mut impl bytes::BufMut, text: &str) {
    buffer.put_u8(b'"');
    let bytes = text.as_bytes();
    let mut from = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => {
                buffer.put_slice(&bytes[from..at]);
                buffer.put_slice(b"\\u00");
                buffer.put_slice(crate::ids::hex(&[*byte]).as_bytes());
                from = at + 1;
                continue;
            }
            _ => continue,
        };
        buffer.put_slice(&bytes[from..at]);
        buffer.put_slice(escape);
        from = at + 1;
    }
    buffer.put_slice(&bytes[from..]);
    buffer.put_u8(b'"');
}

/// Appends `number` in decimal.
pub fn put_number(buffer: &mut impl bytes::BufMut, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten fits.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    buffer.put_slice(&digits[at..]);
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

/// Objects with more keys are checked by a set: comparing all pairs would be quadratic.
const FEW_KEYS: usize = 16;

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, JsonError> {
        let byte = self.peek().ok_or(JsonError::Syntax)?;
        self.at += 1;
        Ok(byte)
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.next()? == byte {
            Ok(())
        } else {
            Err(JsonError::Syntax)
        }
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        match self.peek().ok_or(JsonError::Syntax)? {
            b'{' | b'[' if depth == JSON_DEPTH => Err(JsonError::Depth),
            b'{' => self.object(depth + 1),
            b'[' => self.array(depth + 1),
            b'"' => self.string().map(drop),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), JsonError> {
        if self.bytes[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(JsonError::Syntax)
        }
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonError> {
        self.at += 1;
        self.space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        let mut few: [&str; FEW_KEYS] = [""; FEW_KEYS];
        let mut count = 0;
        let mut many: HashSet<Cow<'a, str>> = HashSet::new();
        loop {
            let key = self.key()?;
            let new = match key {
                Cow::Borrowed(key) if count < FEW_KEYS && many.is_empty() => {
                    let new = !few[..count].contains(&key);
                    few[count] = key;
                    count += 1;
                    new
                }
                key => {
                    if many.is_empty() {
                        many.extend(few[..count].iter().map(|key| Cow::Borrowed(*key)));
                    }
                    many.insert(key)
                }
            };
            if !new {
                return Err(JsonError::DuplicateKey);
            }
            self.space();
            self.expect(b':')?;
            self.space();
            self.value(depth)?;
            self.space();
            match self.next()? {
                b',' => self.space(),
                b'}' => return Ok(()),
                _ => return Err(JsonError::Syntax),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonError> {
        self.at += 1;
        self.space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.value(depth)?;
            self.space();
            match self.next()? {
                b',' => self.space(),
                b']' => return Ok(()),
                _ => return Err(JsonError::Syntax),
            }
        }
    }

    /// A key as it reads after unescaping: `"a"` and `"\u0061"` are one key.
    fn key(&mut self) -> Result<Cow<'a, str>, JsonError> {
        let from = self.at;
        if self.string()? {
            serde_json::from_str(&self.text[from..self.at])
                .map(Cow::Owned)
                .map_err(|_| JsonError::Syntax)
        } else {
            Ok(Cow::Borrowed(&self.text[from + 1..self.at - 1]))
        }
    }

    /// Reads a string; says whether it holds escapes.
    fn string(&mut self) -> Result<bool, JsonError> {
        self.expect(b'"')?;
        let mut escaped = false;
        loop {
            match self.next()? {
                b'"' => return Ok(escaped),
                0..0x20 => return Err(JsonError::Syntax),
                b'\\' => {
                    escaped = true;
                    match self.next()? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                        b'u' => self.unicode()?,
                        _ => return Err(JsonError::Syntax),
                    }
                }
                _ => {}
            }
        }
    }

    /// The digits after `\u`, and the second half of a pair.
    fn unicode(&mut self) -> Result<(), JsonError> {
        match self.four_digits()? {
            0xd800..=0xdbff => {
                if !self.bytes[self.at..].starts_with(b"\\u") {
                    return Err(JsonError::Surrogate);
                }
                self.at += 2;
                match self.four_digits()? {
                    0xdc00..=0xdfff => Ok(()),
                    _ => Err(JsonError::Surrogate),
                }
            }
            0xdc00..=0xdfff => Err(JsonError::Surrogate),
            _ => Ok(()),
        }
    }

    fn four_digits(&mut self) -> Result<u16, JsonError> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = char::from(self.next()?)
                .to_digit(16)
                .ok_or(JsonError::Syntax)?;
            // A hexadecimal digit fits.
            value = value << 4 | digit as u16;
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<(), JsonError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let from = self.at;
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => self.digits(),
            _ => return Err(JsonError::Syntax),
        }
        let integer = &self.text[from..self.at];
        let mut fraction = false;
        if self.peek() == Some(b'.') {
            self.at += 1;
            fraction = true;
            self.one_digit()?;
            self.digits();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            fraction = true;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.one_digit()?;
            self.digits();
        }
        // Sixteen digits hold 2^53; more of them are too large without reading.
        let small = fraction
            || integer.len() <= 15
            || integer.parse().is_ok_and(|n: u64| n <= JSON_INTEGER_MAX);
        if small {
            Ok(())
        } else {
            Err(JsonError::Integer)
        }
    }

    fn one_digit(&mut self) -> Result<(), JsonError> {
        match self.next()? {
            b'0'..=b'9' => Ok(()),
            _ => Err(JsonError::Syntax),
        }
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn nested(depth: usize) -> String {
        "[".repeat(depth) + &"]".repeat(depth)
    }

    #[test]
    fn ambiguous_json_is_refused() {
        let many: String = (0..40).map(|n| format!("\"k{n}\":1,")).collect();
        let cases: &[(&[u8], JsonError)] = &[
            (br#"{"a":1,"a":2}"#, JsonError::DuplicateKey),
            (br#"{"a":1,"\u0061":2}"#, JsonError::DuplicateKey),
            (
                br#"{"x":{"b":1,"c":[{"d":1,"d":1}]}}"#,
                JsonError::DuplicateKey,
            ),
            (b"9007199254740992", JsonError::Integer),
            (b"-9007199254740992", JsonError::Integer),
            (b"123456789012345678901234567890", JsonError::Integer),
            (br#""\ud800""#, JsonError::Surrogate),
            (br#""\udc00""#, JsonError::Surrogate),
            (br#""\ud800\u0041""#, JsonError::Surrogate),
            (b"\"\xc0\xaf\"", JsonError::Utf8),
            (b"\"\xed\xa0\x80\"", JsonError::Utf8),
            (b"\"\xff\"", JsonError::Utf8),
            (b"", JsonError::Syntax),
            (b"{}{}", JsonError::Syntax),
            (b"{\"a\":1,}", JsonError::Syntax),
            (b"01", JsonError::Syntax),
            (b"1.", JsonError::Syntax),
            (b"\"\n\"", JsonError::Syntax),
            (b"NaN", JsonError::Syntax),
        ];
        for (text, error) in cases {
            assert_eq!(
                check(text),
                Err(*error),
                "{}",
                String::from_utf8_lossy(text)
            );
        }
        assert_eq!(check(nested(33).as_bytes()), Err(JsonError::Depth));
        assert_eq!(
            check(format!("{{{many}\"k7\":1}}").as_bytes()),
            Err(JsonError::DuplicateKey)
        );
    }

    #[test]
    fn plain_json_passes() {
        for text in [
            "9007199254740991",
            "-9007199254740991",
            "1e400",
            "9007199254740992.5",
            r#"{"a":1,"b":[true,false,null,"\ud83d\ude00"],"c":{"a":0.5E-3}}"#,
            " { } ",
            &nested(32),
        ] {
            assert_eq!(check(text.as_bytes()), Ok(text));
        }
    }

    #[test]
    fn strings_are_escaped() {
        let mut buffer = Vec::new();
        let text = "a\"b\\c\n\u{1}ü\u{1f600}";
        put_string(&mut buffer, text);
        assert_eq!(parse::<String>(&buffer).unwrap(), text);
        for number in [0, 9, 10, 1234567890, u64::MAX] {
            let mut buffer = Vec::new();
            put_number(&mut buffer, number);
            assert_eq!(String::from_utf8(buffer).unwrap(), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_pass_or_fail(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = check(&bytes);
        }

        #[test]
        fn what_passes_is_json(text in r#"[\[\]{}:,"a1.e\\u-]{0,24}"#) {
            if check(text.as_bytes()).is_ok() {
                prop_assert!(serde_json::from_str::<&serde_json::value::RawValue>(&text).is_ok());
            }
        }
    }
}
