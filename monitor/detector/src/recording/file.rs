//! Form of a recording on disk: a magic word, the format's number, and *blocks*, first the header, then a segment each.
//!
//! A block is `stored length | length | CRC | bytes`, three 32-bit numbers in little endian, and the bytes
//! compressed by deflate. The CRC (CRC-32 of IEEE 802.3) covers the two lengths and the bytes. A file may end
//! anywhere, when the host crashed or its disk was full: what is whole is used, and the tear reported.
//! All else that doesn't fit is an error that names file and offset.
//!
//! Deflate by flate2's backend in Rust: a tenth more than zstd leaves of such blocks is no matter in files that
//! are bounded, and nothing needs a C compiler.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, read::DeflateDecoder, write::DeflateEncoder};

use super::{
    FORMAT, Header, Malformed, OLDEST_FORMAT, limits,
    record::{put, take},
    ring::{Decoded, Recording, Segment},
};

/// What a file begins with; the last byte tells a file that was taken for text on its way.
const MAGIC: [u8; 9] = *b"flatline\n";
/// Before the first block: the magic word and the format's number.
pub(crate) const PREAMBLE_BYTES: usize = MAGIC.len() + 4;
/// Before a block's bytes.
const FRAME_BYTES: usize = 12;
/// The most that a block may hold. A segment is closed at an eighth of what a VM's ring holds.
pub(crate) const BLOCK_MAX_BYTES: usize = 1 << 20;

/// Why a recording can't be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refused.
    #[error("can't read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file begins like something else.
    #[error("{}: not a recording of flatline's", .0.display())]
    NotARecording(PathBuf),
    /// Written by a version that records in another way.
    #[error("{}: recorded in format {format}; this flatline reads formats {OLDEST_FORMAT} to {FORMAT}", path.display())]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
    },
    /// The file ends within a block.
    #[error("{}: torn at byte {offset}: what is before it was read", path.display())]
    Torn {
        /// The file.
        path: PathBuf,
        /// Where the block begins.
        offset: u64,
    },
    /// A block isn't what was written.
    #[error("{}: damaged at byte {offset}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the block begins.
        offset: u64,
        /// What is wrong with it.
        #[source]
        source: Malformed,
    },
}

/// The bytes of a recording's file.
///
/// # Errors
/// [`Malformed`] where something is too large for a block.
pub fn to_bytes(recording: &Recording) -> Result<Vec<u8>, Malformed> {
    let mut out = preamble(&recording.header)?;
    for segment in &recording.segments {
        out.extend(segment_block(segment, 0)?);
    }
    Ok(out)
}

/// A segment as a block; `lost_besides` are records that are missing before it, beyond those that it knows of.
///
/// # Errors
/// [`Malformed`] where it is too large for a block.
pub fn segment_block(segment: &Segment, lost_besides: u64) -> Result<Vec<u8>, Malformed> {
    block(&segment.to_bytes(lost_besides)?)
}

/// The bytes before the first segment: the preamble of a file.
///
/// # Errors
/// [`Malformed`] where the header is too large for a block.
pub fn preamble(header: &Header) -> Result<Vec<u8>, Malformed> {
    let mut out = MAGIC.to_vec();
    out.extend(FORMAT.to_le_bytes());
    let mut bytes = Vec::new();
    put(&mut bytes, header)?;
    out.extend(block(&bytes)?);
    Ok(out)
}

/// `bytes` as a block.
pub(super) fn block(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let too_large = || Malformed::new(format!("{} bytes are too many for a block", bytes.len()));
    let length = u32::try_from(bytes.len()).map_err(|_| too_large())?;
    if bytes.len() > BLOCK_MAX_BYTES {
        return Err(too_large());
    }
    let mut encoder = DeflateEncoder::new(vec![0; FRAME_BYTES], Compression::default());
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    let mut out = written.map_err(|error| Malformed::new(format!("can't be written: {error}")))?;
    let stored = u32::try_from(out.len() - FRAME_BYTES).map_err(|_| too_large())?;
    let crc = checksum(stored, length, out.get(FRAME_BYTES..).unwrap_or_default());
    let frame = [stored, length, crc].map(u32::to_le_bytes).concat();
    if let Some(place) = out.get_mut(..FRAME_BYTES) {
        place.copy_from_slice(&frame);
    }
    Ok(out)
}

fn checksum(stored: u32, length: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&stored.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Reads a recording block by block: a large one never is in memory as a whole.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    path: PathBuf,
    offset: u64,
    format: u32,
    header: Header,
}

impl<R: Read> Reader<R> {
    /// Begins to read a recording; `path` is for messages.
    ///
    /// # Errors
    /// [`ReadError`] where it isn't a recording that this version reads.
    pub fn new(mut from: R, path: &Path) -> Result<Self, ReadError> {
        let path = path.to_owned();
        let io = |source| ReadError::Io { path: path.clone(), source };
        let start = up_to(&mut from, PREAMBLE_BYTES).map_err(io)?;
        let (magic, format) = start.split_at_checked(MAGIC.len()).unwrap_or((&start, &[]));
        if magic != MAGIC.get(..magic.len()).unwrap_or_default() || magic.is_empty() {
            return Err(ReadError::NotARecording(path));
        }
        let Ok(format) = <[u8; 4]>::try_from(format) else {
            return Err(ReadError::Torn { path, offset: 0 });
        };
        let format = u32::from_le_bytes(format);
        if !(OLDEST_FORMAT..=FORMAT).contains(&format) {
            return Err(ReadError::OtherFormat { path, format });
        }
        let mut offset = PREAMBLE_BYTES as u64;
        let torn = ReadError::Torn { path: path.clone(), offset };
        let bytes = read_block(&mut from, &path, &mut offset)?.ok_or(torn)?;
        let damaged = |source| ReadError::Damaged {
            path: path.clone(),
            offset: PREAMBLE_BYTES as u64,
            source,
        };
        let header: Header = take(&mut &bytes[..]).map_err(damaged)?;
        limits::detection(&header.detection).map_err(damaged)?;
        Ok(Self { from, path, offset, format, header })
    }

    /// The recording's header: the VM, and the policy by which it was judged.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next segment; `None` at the end.
    ///
    /// # Errors
    /// [`ReadError`] where it is torn or damaged; nothing that comes after that can be read.
    pub fn next_segment(&mut self) -> Result<Option<(Segment, Decoded)>, ReadError> {
        let begins = self.offset;
        let Some(bytes) = read_block(&mut self.from, &self.path, &mut self.offset)? else {
            return Ok(None);
        };
        let decoded = Segment::from_bytes(&bytes, self.format)
            .and_then(|segment| segment.decode().map(|decoded| (segment, decoded)));
        let decoded = decoded.map_err(|source| ReadError::Damaged {
            path: self.path.clone(),
            offset: begins,
            source,
        })?;
        Ok(Some(decoded))
    }
}

/// What the next block holds; `None` where the file ends instead of one.
fn read_block(
    from: &mut impl Read,
    path: &Path,
    offset: &mut u64,
) -> Result<Option<Vec<u8>>, ReadError> {
    let begins = *offset;
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let torn = || ReadError::Torn { path: path.to_owned(), offset: begins };
    let damaged = |what: String| ReadError::Damaged {
        path: path.to_owned(),
        offset: begins,
        source: Malformed::new(what),
    };
    let frame = up_to(from, FRAME_BYTES).map_err(io)?;
    if frame.is_empty() {
        return Ok(None);
    }
    let Ok(frame) = <[u8; FRAME_BYTES]>::try_from(frame) else { return Err(torn()) };
    // A file system that crashed may leave zeros where it had not written yet.
    if frame == [0; FRAME_BYTES] {
        return Err(torn());
    }
    let [a, b, c, d, e, f, g, h, i, j, k, l] = frame;
    let stored = u32::from_le_bytes([a, b, c, d]);
    let length = u32::from_le_bytes([e, f, g, h]);
    let crc = u32::from_le_bytes([i, j, k, l]);
    let (stored_bytes, length_bytes) = (stored as usize, length as usize);
    // What deflate can't make shorter, it makes longer by five bytes for each of its blocks, at most.
    if length_bytes > BLOCK_MAX_BYTES || stored_bytes > BLOCK_MAX_BYTES + BLOCK_MAX_BYTES / 256 {
        return Err(damaged(format!("a block of {length} bytes, stored as {stored}")));
    }
    let bytes = up_to(from, stored_bytes).map_err(io)?;
    if bytes.len() < stored_bytes {
        return Err(torn());
    }
    if checksum(stored, length, &bytes) != crc {
        return Err(damaged("its checksum is wrong".to_owned()));
    }
    let mut out = Vec::new();
    // One byte more than it says tells a block that holds more.
    let inflated =
        DeflateDecoder::new(&bytes[..]).take(u64::from(length) + 1).read_to_end(&mut out);
    inflated.map_err(|error| damaged(format!("can't be inflated: {error}")))?;
    if out.len() != length_bytes {
        return Err(damaged("its length is wrong".to_owned()));
    }
    *offset += (FRAME_BYTES + stored_bytes) as u64;
    Ok(Some(out))
}

/// As many bytes as there are, up to `number`.
fn up_to(from: &mut impl Read, number: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(number as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
