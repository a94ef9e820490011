//! XDR (RFC 4506), as far as libvirt's calls need it: big-endian words, and bytes that are filled up to whole words.

/// What is written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn word(mut self, word: u32) -> Self {
        self.0.extend(word.to_be_bytes());
        self
    }

    pub(super) fn number(self, number: i32) -> Self {
        self.word(number.cast_unsigned())
    }

    /// Bytes of a length that both sides know, which is of whole words.
    pub(super) fn fixed<const N: usize>(mut self, bytes: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4), "it would need filling") };
        self.0.extend(bytes);
        self
    }

    /// A string, of less than 4 GiB as all that is sent.
    pub(super) fn string(self, text: &str) -> Self {
        let mut written = self.word(u32::try_from(text.len()).unwrap_or(u32::MAX));
        written.0.extend(text.as_bytes());
        written.0.resize(written.0.len().next_multiple_of(4), 0);
        written
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// What is read; `None` where less is there than is asked for.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn word(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*word))
    }

    pub(super) fn number(&mut self) -> Option<i32> {
        self.word().map(u32::cast_signed)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// The bytes of a string.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.word()?).ok()?;
        let filled = length.checked_next_multiple_of(4)?;
        let (bytes, rest) = self.0.split_at_checked(filled)?;
        self.0 = rest;
        bytes.get(..length)
    }

    /// A string that may not be there: the inner `None`.
    pub(super) fn optional_string(&mut self) -> Option<Option<&'a [u8]>> {
        match self.word()? {
            0 => Some(None),
            _ => self.string().map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let written = Writer::default().word(7).number(-1).fixed(b"12345678").string("abcde");
        let bytes = written.string("").word(1).string("x").word(0).finish();
        assert_eq!(bytes.len(), 4 + 4 + 8 + (4 + 8) + 4 + (4 + 8) + 4);
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.word(), reader.number()), (Some(7), Some(-1)));
        assert_eq!(reader.fixed(), Some(*b"12345678"));
        assert_eq!((reader.string(), reader.string()), (Some(&b"abcde"[..]), Some(&b""[..])));
        assert_eq!(reader.optional_string(), Some(Some(&b"x"[..])));
        assert_eq!(reader.optional_string(), Some(None));
        assert_eq!(reader.word(), None);
    }

    #[test]
    fn a_length_that_promises_more_than_is_there_is_no_string() {
        for bytes in [&[0, 0, 0, 5, b'a'][..], &[0xff; 8], &[0, 0, 0, 1, b'a'], &[0, 0]] {
            assert_eq!(Reader::new(bytes).string(), None, "{bytes:?}");
        }
    }
}
