//! The header of a PPM, as QEMU's `screendump` writes it: `P6`, width, height and 255, then three bytes a pixel.
//!
//! A QEMU that was taken over writes what it likes: nothing is allocated by what a header says before it was found
//! to be within bounds, and then a row at a time.

use std::ops::Range;

/// The most pixels: 5120x2880, and a little more.
const MOST_PIXELS: u64 = 16 << 20;
/// The longest side. A row of it takes 48 KiB.
const MOST_SIDE: u32 = 16 << 10;
/// No header is longer: three numbers of five digits need 20 bytes.
pub(super) const MOST_HEADER_BYTES: usize = 64;
/// The most that a picture takes.
#[cfg(any(fuzzing, test))]
const MOST_BYTES: u64 = MOST_PIXELS * 3 + MOST_HEADER_BYTES as u64;

/// A picture's size, and where its pixels begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pixels_at: u64,
}

impl Header {
    pub(super) fn row_bytes(&self) -> usize {
        self.width as usize * 3
    }

    /// Where a row begins.
    pub(super) fn row_at(&self, number: u32) -> u64 {
        self.pixels_at + u64::from(number) * self.row_bytes() as u64
    }
}

/// Reads the header at the start of `bytes`.
pub(super) fn header(bytes: &[u8]) -> Result<Header, String> {
    let bytes = bytes.get(..MOST_HEADER_BYTES).unwrap_or(bytes);
    let mut at = 0;
    let magic = word(bytes, &mut at).and_then(|word| bytes.get(word));
    if magic != Some(b"P6") {
        return Err("it does not begin with P6".to_owned());
    }
    let mut number = |what: &str| {
        let digits = word(bytes, &mut at).and_then(|word| bytes.get(word)).unwrap_or_default();
        let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<u32>().ok());
        number.ok_or_else(|| format!("its {what} is no number"))
    };
    let (width, height, most) = (number("width")?, number("height")?, number("highest value")?);
    let side = 1..=MOST_SIDE;
    if !side.contains(&width) || !side.contains(&height) {
        return Err(format!("a side of {width}x{height} is none, or longer than {MOST_SIDE}"));
    }
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(format!("{width}x{height} are more than {MOST_PIXELS} pixels"));
    }
    if most != 255 {
        return Err(format!("its highest value is {most}, not 255"));
    }
    // One byte of white space ends the header.
    if !bytes.get(at).is_some_and(u8::is_ascii_whitespace) {
        return Err("its header does not end".to_owned());
    }
    Ok(Header { width, height, pixels_at: at as u64 + 1 })
}

/// The next word from `at` on, which is moved behind it; comments are passed over.
fn word(bytes: &[u8], at: &mut usize) -> Option<Range<usize>> {
    loop {
        match bytes.get(*at)? {
            b'#' => *at += bytes.get(*at..)?.iter().position(|byte| *byte == b'\n')? + 1,
            byte if byte.is_ascii_whitespace() => *at += 1,
            _ => break,
        }
    }
    let begin = *at;
    let length = bytes.get(begin..)?.iter().take_while(|byte| !byte.is_ascii_whitespace()).count();
    *at = begin + length;
    Some(begin..*at)
}

#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(bytes: &[u8]) {
    let Ok(header) = header(bytes) else { return };
    assert!(header.row_at(header.height) <= MOST_BYTES);
    // A whole row at most is missing or there: what isn't there is an error of the reader, and never a panic.
    let read = |row: &mut [u8], offset: u64| {
        let offset = usize::try_from(offset).map_err(std::io::Error::other)?;
        let from =
            bytes.get(offset..offset + row.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        row.copy_from_slice(from);
        Ok(())
    };
    if let Ok(png) = super::picture::png(&header, read) {
        assert!(png.starts_with(b"\x89PNG"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_qemu_and_others_write_it() {
        let expected = Header { width: 720, height: 400, pixels_at: 15 };
        assert_eq!(header(b"P6\n720 400\n255\n\0\0\0"), Ok(expected));
        let commented = header(b"P6 # made by hand\n720\t400\r\n255\n").unwrap();
        assert_eq!((commented.width, commented.height, commented.pixels_at), (720, 400, 31));
        assert_eq!(expected.row_at(0), 15);
        assert_eq!(expected.row_at(2), 15 + 2 * 3 * 720);
    }

    #[test]
    fn a_hostile_header_is_refused_with_its_reason() {
        for (bytes, part) in [
            (&b""[..], "P6"),
            (b"P6", "width"),
            (b"P3\n1 1\n255\n", "P6"),
            (b"P61 1 255\n", "P6"),
            (b"P6\n-1 1\n255\n", "width"),
            (b"P6\n4294967296 1\n255\n", "width"),
            (b"P6\n99999999999999999999 1\n255\n", "width"),
            (b"P6\n\xff\xfe 1\n255\n", "width"),
            (b"P6\n0 1\n255\n", "none"),
            (b"P6\n1 16385\n255\n", "longer than 16384"),
            (b"P6\n16384 16384\n255\n", "pixels"),
            (b"P6\n1 1\n65535\n", "not 255"),
            (b"P6\n1 1\n255", "does not end"),
            (b"P6 # a comment that never ends", "width"),
            (&[b' '; 1000], "P6"),
        ] {
            let error = header(bytes).unwrap_err();
            assert!(error.contains(part), "{error:?} for {bytes:?}");
        }
        // A header that is drawn out is none.
        let long = [b"P6 ", &[b' '; 100][..], b"1 1 255 "].concat();
        assert!(header(&long).is_err());
    }

    #[test]
    fn the_largest_picture_that_is_taken_fits() {
        let largest = header(b"P6\n4096 4096\n255\n").unwrap();
        assert!(largest.row_at(largest.height) <= MOST_BYTES);
        assert!(header(b"P6\n16384 1024\n255\n").is_ok());
        assert!(header(b"P6\n16384 1025\n255\n").is_err());
    }
}
