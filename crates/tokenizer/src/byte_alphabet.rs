//! The byte alphabet of GPT-2: a printable character for each of the 256 bytes, and back.
//!
//! Byte-level vocabularies are written in it: the token of the two bytes `" a"` stands in the file as `Ġa`. Bytes that
//! print in Latin-1 stand for themselves; the other 68 become U+0100, U+0101, … in order.
//!
//! Source: GPT-2's `encoder.py`, `bytes_to_unicode`.

/// One beyond the last character of the alphabet, U+0143.
const END: usize = 0x144;

/// For each character below [`END`], the byte it stands for, or `NONE`.
static BYTE_OF: [u16; END] = byte_of();

const NONE: u16 = u16::MAX;

const fn byte_of() -> [u16; END] {
    let mut table = [NONE; END];
    let mut next = 0x100;
    let mut byte = 0;
    while byte < 256 {
        if stands_for_itself(byte) {
            table[byte] = byte as u16;
        } else {
            table[next] = byte as u16;
            next += 1;
        }
        byte += 1;
    }
    table
}

const fn stands_for_itself(byte: usize) -> bool {
    matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Appends to `out` the bytes that `token` spells. Returns whether it could: `out` is unchanged when a character of
/// `token` is not in the alphabet.
#[inline]
pub(crate) fn decode_into(token: &str, out: &mut Vec<u8>) -> bool {
    let begin = out.len();
    let bytes = token.as_bytes();
    let mut pos = 0;
    while pos < bytes.len() {
        let lead = usize::from(bytes[pos]);
        // The alphabet ends below U+0800, so its characters have one or two bytes.
        let (code_point, len) = match lead {
            0..0x80 => (lead, 1),
            0xC0..0xE0 => ((lead & 0x1F) << 6 | usize::from(bytes[pos + 1] & 0x3F), 2),
            _ => (END, 1),
        };
        match BYTE_OF.get(code_point) {
            Some(&byte) if byte != NONE => out.push(byte as u8),
            _ => {
                out.truncate(begin);
                return false;
            }
        }
        pos += len;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(token: &str) -> Option<Vec<u8>> {
        let mut out = vec![7];
        decode_into(token, &mut out).then(|| out.split_off(1))
    }

    #[test]
    fn spells_spaces_newlines_and_utf8() {
        assert_eq!(decoded("Ġa").unwrap(), b" a");
        assert_eq!(decoded("ĊĊ").unwrap(), b"\n\n");
        assert_eq!(decoded("Ã©").unwrap(), "é".as_bytes());
        assert_eq!(decoded("").unwrap(), b"");
    }

    #[test]
    fn has_each_byte_once() {
        let mut bytes: Vec<u16> = BYTE_OF.iter().copied().filter(|byte| *byte != NONE).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..256).collect::<Vec<u16>>());
    }

    #[test]
    fn refuses_characters_outside_the_alphabet_and_leaves_the_output_alone() {
        for token in [" ", "a b", "\u{AD}", "\u{144}", "中", "a\u{1F600}"] {
            assert_eq!(decoded(token), None, "{token:?}");
        }
    }
}
