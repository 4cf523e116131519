//! How good a cluster secret is (protocol 3.6).

use crate::wire::limits::SECRET_MIN_CHARS;

/// Below this estimate, in powers of ten of guesses, a secret is weak.
const WEAK_BELOW_LOG10: f64 = 14.0;

/// Texts printed in documentation, this project's and others': everybody knows them.
const EXAMPLES: &[&str] = &[
    "change-me-to-a-long-random-string",
    "changeme-changeme",
    "correct horse battery staple",
    "correct-horse-battery-staple",
    "correcthorsebatterystaple",
    "my-cluster-secret",
    "my-cluster-secret-key",
    "my-secret-cluster-key",
    "my-shared-secret-key",
    "replace-with-a-long-random-secret",
    "shared-cluster-secret",
    "super-secret-cluster-key",
    "supersecretpassword",
    "the-same-secret-on-every-node",
    "your-16-char-secret-here",
    "your-cluster-secret",
    "your-cluster-secret-here",
    "your-secret-key-here",
    "your-shared-secret-here",
    "your-shared-secret-min-16-chars",
];

/// Runs that a sequence follows, forwards, backwards and round the end.
const SEQUENCES: &[&str] = &[
    "0123456789",
    "1234567890",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiopasdfghjklzxcvbnm",
    "qwertyuiop",
    "asdfghjkl",
    "zxcvbnm",
];

/// What a secret is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strength {
    /// Fewer than 16 characters: never accepted.
    Short,
    /// One character repeated, a sequence, or an example from documentation.
    Trivial,
    /// Guessable with effort: accepted with a warning.
    Weak,
    /// Fine.
    Good,
}

/// Judges a secret.
#[must_use]
pub fn judge(secret: &str) -> Strength {
    if secret.chars().count() < SECRET_MIN_CHARS {
        Strength::Short
    } else if trivial(secret) {
        Strength::Trivial
    } else if evidently_random(secret) {
        Strength::Good
    } else if zxcvbn::zxcvbn(secret, &["clawmatrix", "openclaw"]).guesses_log10() < WEAK_BELOW_LOG10
    {
        Strength::Weak
    } else {
        Strength::Good
    }
}

/// Whether a secret is so mixed that no word list need be asked: the lists cost a node megabytes
/// for as long as it runs. What `clawmatrix secret new` or `openssl rand` makes is found here;
/// anything doubtful is left to the lists.
fn evidently_random(secret: &str) -> bool {
    let class = |c: char| match c {
        'a'..='z' => 0_u8,
        'A'..='Z' => 1,
        '0'..='9' => 2,
        _ => 3,
    };
    let chars: Vec<char> = secret.chars().collect();
    let changes = chars
        .windows(2)
        .filter(|pair| class(pair[0]) != class(pair[1]))
        .count();
    let mut distinct = chars.clone();
    distinct.sort_unstable();
    distinct.dedup();
    chars.len() >= 32 && distinct.len() >= 16 && changes * 3 >= chars.len()
}

fn trivial(secret: &str) -> bool {
    let folded = secret.trim().to_lowercase();
    let mut chars = folded.chars();
    let first = chars.next();
    if chars.all(|c| Some(c) == first) {
        return true;
    }
    let plain = |text: &str| {
        text.chars()
            .filter(|c| c.is_alphanumeric())
            .collect::<String>()
    };
    let letters = plain(&folded);
    EXAMPLES.iter().any(|example| plain(example) == letters)
        || SEQUENCES
            .iter()
            .any(|s| follows(&folded, s) || follows(&folded.chars().rev().collect::<String>(), s))
}

/// Whether every character of `text` is followed by its neighbour in `sequence`, taken as a ring.
fn follows(text: &str, sequence: &str) -> bool {
    let ring: Vec<char> = sequence.chars().collect();
    let Some(start) = text
        .chars()
        .next()
        .and_then(|c| ring.iter().position(|r| *r == c))
    else {
        return false;
    };
    text.chars()
        .enumerate()
        .all(|(i, c)| ring[(start + i) % ring.len()] == c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifteen_characters_are_too_few_and_sixteen_enough() {
        assert_eq!(judge("k3Vq9xT1mZp7w2B"), Strength::Short);
        assert_eq!(judge("k3Vq9xT1mZp7w2Ba"), Strength::Good);
        // Characters, not bytes.
        assert_eq!(judge("ääääääääääääää1"), Strength::Short);
    }

    #[test]
    fn what_anybody_would_try_first_is_trivial() {
        for secret in [
            "aaaaaaaaaaaaaaaa",
            "0123456789012345",
            "abcdefghijklmnop",
            "9876543210987654",
            "qwertyuiopasdfgh",
            "your-cluster-secret-here",
            "Correct Horse Battery Staple",
        ] {
            assert_eq!(judge(secret), Strength::Trivial, "{secret}");
        }
    }

    #[test]
    fn only_mixed_texts_pass_without_the_word_lists() {
        assert!(evidently_random("q0lLw0mCk2gXfDq5bV7nYt3eR8sJ1uHa"));
        // 64 hexadecimal digits, as `openssl rand -hex 32` prints them.
        assert!(evidently_random(
            "3f9a1c07e2b84d56a0f1c93e7b2d8a4415c6e0f7d29b38a1b4c5d6e7f8091a2b"
        ));
        for doubtful in [
            "correct horse battery staple and more words",
            "Password12345678Password12345678",
            "ab1ab1ab1ab1ab1ab1ab1ab1ab1ab1ab1ab1",
        ] {
            assert!(!evidently_random(doubtful), "{doubtful}");
        }
    }

    #[test]
    fn guessable_ones_are_weak_and_random_ones_good() {
        assert_eq!(judge("password12345678"), Strength::Weak);
        assert_eq!(judge("officehomesecret"), Strength::Weak);
        assert_eq!(judge("Zx7-pq2LmV9sKd0-tR4wYh8uB3nC6jF1"), Strength::Good);
    }
}
