//! A cursor over the file's bytes that never indexes: what is not there is an error, never a panic.

use byteorder::{ByteOrder, LittleEndian};

use crate::error::{ParseError, Subject};

/// The bytes not yet read, and where they begin in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    offset: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes, offset: 0 }
    }

    /// A reader over a piece of the file that begins at `offset`.
    pub(crate) fn at(bytes: &'a [u8], offset: u64) -> Self {
        Reader { rest: bytes, offset }
    }

    /// Where the next byte stands in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes that are left.
    pub(crate) fn remaining(&self) -> u64 {
        self.rest.len() as u64
    }

    /// The bytes between this reader and a later copy of it.
    pub(crate) fn up_to(&self, later: &Reader<'a>) -> &'a [u8] {
        let n = self.rest.len().saturating_sub(later.rest.len());
        self.rest.get(..n).unwrap_or_default()
    }

    /// The next `n` bytes, read on behalf of `subject`.
    pub(crate) fn take(&mut self, n: u64, subject: Subject<'_>) -> Result<&'a [u8], ParseError> {
        match usize::try_from(n).ok().and_then(|n| self.rest.split_at_checked(n)) {
            Some((taken, rest)) => {
                self.rest = rest;
                self.offset += n;
                Ok(taken)
            }
            None => Err(self.truncated(n, subject)),
        }
    }

    pub(crate) fn u8(&mut self, subject: Subject<'_>) -> Result<u8, ParseError> {
        self.chunk::<1>(subject).map(|&[byte]| byte)
    }

    pub(crate) fn u16(&mut self, subject: Subject<'_>) -> Result<u16, ParseError> {
        self.chunk::<2>(subject).map(|bytes| LittleEndian::read_u16(bytes))
    }

    pub(crate) fn u32(&mut self, subject: Subject<'_>) -> Result<u32, ParseError> {
        self.chunk::<4>(subject).map(|bytes| LittleEndian::read_u32(bytes))
    }

    pub(crate) fn u64(&mut self, subject: Subject<'_>) -> Result<u64, ParseError> {
        self.chunk::<8>(subject).map(|bytes| LittleEndian::read_u64(bytes))
    }

    /// A GGUF string: a `u64` length, then that many bytes of UTF-8.
    #[inline]
    pub(crate) fn str(&mut self, subject: Subject<'_>) -> Result<&'a str, ParseError> {
        match split_str(self.rest) {
            Some((text, rest)) => {
                self.rest = rest;
                self.offset += 8 + text.len() as u64;
                Ok(text)
            }
            None => Err(self.why_no_str(subject)),
        }
    }

    /// What keeps the next bytes from being a string. Apart from [`str`](Self::str), which a vocabulary calls hundreds
    /// of thousands of times.
    #[cold]
    fn why_no_str(&mut self, subject: Subject<'_>) -> ParseError {
        let start = self.offset;
        let len = match self.u64(subject) {
            Ok(len) => len,
            Err(truncated) => return truncated,
        };
        let text = usize::try_from(len).ok().and_then(|len| self.rest.get(..len));
        let subject = subject.to_string();
        match text.map(std::str::from_utf8) {
            None => ParseError::StringTooLong { subject, offset: start, len, remaining: self.remaining() },
            Some(result) => {
                let valid_up_to = result.map_or_else(|error| error.valid_up_to(), str::len);
                ParseError::InvalidUtf8 { subject, offset: self.offset.saturating_add(valid_up_to as u64) }
            }
        }
    }

    fn chunk<const N: usize>(&mut self, subject: Subject<'_>) -> Result<&'a [u8; N], ParseError> {
        match self.rest.split_first_chunk::<N>() {
            Some((chunk, rest)) => {
                self.rest = rest;
                self.offset += N as u64;
                Ok(chunk)
            }
            None => Err(self.truncated(N as u64, subject)),
        }
    }

    fn truncated(&self, need: u64, subject: Subject<'_>) -> ParseError {
        ParseError::Truncated {
            subject: subject.to_string(),
            offset: self.offset,
            need,
            file_len: self.offset.saturating_add(self.remaining()),
        }
    }
}

/// Splits the first string off `bytes`; `None` where there is none or it is not UTF-8.
#[inline]
pub(crate) fn split_str(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<8>()?;
    let len = usize::try_from(LittleEndian::read_u64(len)).ok()?;
    let (text, rest) = rest.split_at_checked(len)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}
