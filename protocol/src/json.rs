//! Bound on the memory that a JSON document of a client may cost, judged while its bytes arrive.
//!
//! A JSON reader allocates for each value: an empty text is three bytes in a list of texts, and a `String` of
//! 24 bytes in memory, up to three times over while the list grows. The counter sees the document before any
//! value is read, and refuses one whose values would take more than its size accounts for. The order of the
//! names in an object makes no difference. The counter knows no type and checks no syntax; the reader does.

use crate::canonical::MEMORY_BYTES_MIN;
use crate::limits::JSON_TEXT_BYTES_MAX;

/// Memory in bytes that counts for a value in a list or an object. It covers a text, or an empty collection,
/// in a list that has just been doubled, and a name with its text in a B-tree that is half full.
const VALUE_BYTES: usize = 96;
/// Memory in bytes that counts for an object beside its values: a node of a B-tree with room for 11 texts
/// under their names.
const OBJECT_BYTES: usize = 576;

/// Memory that the values of a JSON document may take, counted as its bytes arrive.
#[derive(Debug, Clone, Default)]
pub struct JsonCost {
    bytes: usize,
    cost: usize,
    /// Bytes of the text that is open.
    text_bytes: usize,
    in_text: bool,
    is_escaped: bool,
}

/// Reason for which a document is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CostlyJson {
    /// Its values would take several times the memory of its bytes.
    #[error("{bytes} bytes of JSON have values of {cost} bytes in memory; accepted: at most {allowed}")]
    Values {
        /// Size of the document in bytes.
        bytes: usize,
        /// Memory that counts for its values in bytes.
        cost: usize,
        /// Memory that is accepted in bytes.
        allowed: usize,
    },
    /// A text is longer than any that the API takes; a refusal would quote it.
    #[error("a text in JSON is longer than {JSON_TEXT_BYTES_MAX} bytes")]
    LongText,
}

impl JsonCost {
    /// Counts the next bytes of the document.
    ///
    /// # Errors
    /// Returns an error once a text is longer than [`JSON_TEXT_BYTES_MAX`].
    pub fn add(&mut self, chunk: &[u8]) -> Result<(), CostlyJson> {
        for byte in chunk {
            self.count(*byte);
            if self.text_bytes > JSON_TEXT_BYTES_MAX {
                return Err(CostlyJson::LongText);
            }
        }
        self.bytes = self.bytes.saturating_add(chunk.len());
        debug_assert!(
            self.cost <= self.bytes.saturating_mul(OBJECT_BYTES),
            "an object is the most of a byte"
        );
        Ok(())
    }

    /// Judges the whole document.
    ///
    /// # Errors
    /// Returns an error if the values count for more memory than twice the bytes and 1 MiB. The texts among
    /// them take the bytes a third time.
    pub fn check(&self) -> Result<(), CostlyJson> {
        let Self { bytes, cost, .. } = *self;
        let allowed = bytes.saturating_mul(2).saturating_add(MEMORY_BYTES_MIN);
        debug_assert!(allowed >= MEMORY_BYTES_MIN, "short documents have a floor");
        if cost > allowed { Err(CostlyJson::Values { bytes, cost, allowed }) } else { Ok(()) }
    }

    /// Counts what separates and opens values, outside of texts.
    fn count(&mut self, byte: u8) {
        debug_assert!(self.in_text || !self.is_escaped, "only texts have escapes");
        self.text_bytes = if self.in_text { self.text_bytes + 1 } else { 0 };
        let cost = match byte {
            b'{' if !self.in_text => OBJECT_BYTES,
            b',' | b':' | b'[' if !self.in_text => VALUE_BYTES,
            _ => 0,
        };
        self.cost = self.cost.saturating_add(cost);
        let opens_escape = self.in_text && !self.is_escaped && byte == b'\\';
        self.in_text ^= byte == b'"' && !self.is_escaped;
        self.is_escaped = opens_escape;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts a document in chunks of this many bytes; returns the memory that counts for its values.
    fn cost(document: &str, chunk: usize) -> usize {
        let mut counter = JsonCost::default();
        document.as_bytes().chunks(chunk).for_each(|bytes| counter.add(bytes).expect("few values"));
        counter.cost
    }

    #[test]
    fn values_are_counted_outside_of_texts_however_the_bytes_arrive() {
        for (document, values, objects) in [
            ("", 0, 0),
            ("7", 0, 0),
            ("[]", 1, 0),
            ("[1,2,3]", 3, 0),
            (r#"{"a":"b","c":[{}]}"#, 4, 2),
            (r#"["a,b:c[{"]"#, 1, 0),
            (r#"["a\",\\","b\\\\",1]"#, 3, 0),
            ("[\"ä,\",1]", 2, 0),
        ] {
            for chunk in [1, 2, 3, 100] {
                let expected = values * VALUE_BYTES + objects * OBJECT_BYTES;
                assert_eq!(cost(document, chunk), expected, "{document} by {chunk}");
            }
        }
    }

    #[test]
    fn a_document_is_judged_by_its_whole_size() {
        let values = 2 * MEMORY_BYTES_MIN / VALUE_BYTES;
        let dense = vec![b','; values];
        let mut counter = JsonCost::default();
        assert_eq!((counter.add(&dense[..values / 2]), counter.check()), (Ok(()), Ok(())), "free");
        assert_eq!(counter.add(&dense[values / 2..]), Ok(()));
        let refused = counter.check().expect_err("twice as many");
        assert!(matches!(refused, CostlyJson::Values { bytes, .. } if bytes == values), "{refused}");
        // The positive control: the same values in a document of as many bytes as they count for.
        assert_eq!(counter.add(&vec![b' '; values * VALUE_BYTES]), Ok(()));
        assert_eq!(counter.check(), Ok(()));
    }

    #[test]
    fn a_text_has_a_longest_length() {
        let longest = format!("[\"{}\",\"\"]", "a".repeat(JSON_TEXT_BYTES_MAX - 1));
        assert_eq!(JsonCost::default().add(longest.as_bytes()), Ok(()));
        let longer = format!("[\"{}\"]", "a".repeat(JSON_TEXT_BYTES_MAX));
        assert_eq!(JsonCost::default().add(longer.as_bytes()), Err(CostlyJson::LongText));
    }
}
