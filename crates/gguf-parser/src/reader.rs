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
    pub(crate) fn str(&mut self, subject: Subject<'_>) -> Result<&'a str, ParseError> {
        let start = self.offset;
        let len = self.u64(subject)?;
        if len > self.remaining() {
            return Err(ParseError::StringTooLong {
                subject: subject.to_string(),
                offset: start,
                len,
                remaining: self.remaining(),
            });
        }
        let text_start = self.offset;
        let bytes = self.take(len, subject)?;
        std::str::from_utf8(bytes).map_err(|error| ParseError::InvalidUtf8 {
            subject: subject.to_string(),
            offset: text_start.saturating_add(error.valid_up_to() as u64),
        })
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
