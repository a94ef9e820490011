//! Picture of what the console showed, as a PNG.
//!
//! QEMU is handed a descriptor to write to (`add-fd`, then `screendump` to `/dev/fdset/N`), and no path: so
//! neither its user nor its mount namespace matters, and there is nothing that a hostile QEMU could put a symbolic
//! link or a FIFO in place of. Behind the descriptor is memory (`memfd_create`): to read it waits for nothing, and it
//! goes away with its last descriptor. It can't be sealed, since QEMU empties what it opens (`qemu_dup_flags` in its
//! util/osdep.c); what a QEMU writes beyond a picture is memory that it pays for itself, in its own control group, and
//! is not looked at. Whatever changes while it is read makes a wrong picture, or an error.
//!
//! It is always asked for a PPM, which every QEMU writes, and in a millisecond or two: to compress a PNG would take
//! QEMU's main loop some 10 ms and more of the time before the restart. The PNG is made here once the reset is under
//! way, from pixels, so that nothing which a QEMU wrote reaches a picture viewer as it is.
//!
//! A screendump that QEMU never finishes (of a display whose own server hangs) keeps its monitor from taking any
//! other command, on whatever connection: nothing can reset the guest then, and that is said. Once QEMU answers again, it is
//! told to, and not asked for a picture once more; `evidence_limit = "0s"` is the way around.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
};

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};
use serde_json::json;

use super::{ANSWER_LIMIT, Bounded, ppm};
use crate::storage::incidents::EVIDENCE_MAX_BYTES;
use flatline_qemu::{qmp::QmpHandle, text::error_chain};

/// A picture that was taken, and not yet looked at.
#[derive(Debug)]
pub(super) struct Raw(File);

/// Has QEMU write what its console shows.
pub(super) async fn take(qmp: &QmpHandle) -> Result<Raw, String> {
    let (ours, theirs) = memory().map_err(|error| format!("no memory for it: {error}"))?;
    let added = qmp
        .execute_with(theirs, "add-fd", None, ANSWER_LIMIT)
        .await
        .map_err(|error| error_chain(&error))?;
    let set = added.get("fdset-id").and_then(serde_json::Value::as_u64);
    let set = set.ok_or("QEMU doesn't say where it has the descriptor")?;
    let arguments = json!({ "filename": format!("/dev/fdset/{set}") });
    let dumped = qmp.execute("screendump", Some(arguments), ANSWER_LIMIT).await;
    // It is not waited for: QEMU takes commands in their order.
    let qmp = qmp.clone();
    tokio::spawn(async move {
        let _ = qmp.execute("remove-fd", Some(json!({ "fdset-id": set })), ANSWER_LIMIT).await;
    });
    dumped.map(|_| Raw(ours)).map_err(|error| error_chain(&error))
}

/// Memory, and a second descriptor of it that can only be written to, as QEMU wants it: of those that it was handed, it
/// takes the one that is open in just the way in which it opens a file.
fn memory() -> io::Result<(File, OwnedFd)> {
    let ours = memfd_create("flatline-screen", MemfdFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", ours.as_raw_fd());
    let theirs = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((File::from(ours), theirs))
}

impl Raw {
    /// The picture as a PNG, with its width and height. Computes for as long as that takes; blocks on nothing.
    pub(super) fn to_png(&self) -> Result<(Vec<u8>, (u32, u32)), String> {
        let mut start = vec![0; ppm::MOST_HEADER_BYTES];
        let read = self.0.read_at(&mut start, 0).map_err(|error| error.to_string())?;
        start.truncate(read);
        let header = ppm::header(&start).map_err(|why| format!("QEMU wrote no picture: {why}"))?;
        let png = png(&header, |row, offset| self.0.read_exact_at(row, offset));
        png.map(|png| (png, (header.width, header.height)))
            .map_err(|error| format!("it can't be put as a PNG: {error}"))
    }
}

/// Compresses a picture row by row; `read` brings the bytes at an offset of the PPM.
pub(super) fn png(
    header: &ppm::Header,
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> Result<Vec<u8>, png::EncodingError> {
    let mut out = Bounded::new(EVIDENCE_MAX_BYTES);
    let mut encoder = png::Encoder::new(&mut out, header.width, header.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // A console is mostly of one colour: fast makes it hardly larger, and takes a tenth of the time.
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    let mut stream = writer.stream_writer()?;
    let mut row = vec![0; header.row_bytes()];
    for number in 0..header.height {
        read(&mut row, header.row_at(number))?;
        stream.write_all(&row)?;
    }
    stream.finish()?;
    writer.finish()?;
    Ok(out.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn decode(png: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width, info.height, pixels)
    }

    /// What comes of it when QEMU writes `bytes`.
    fn written(bytes: &[u8]) -> Result<(Vec<u8>, (u32, u32)), String> {
        let (ours, theirs) = memory().unwrap();
        File::from(theirs).write_all(bytes).unwrap();
        Raw(ours).to_png()
    }

    #[test]
    fn a_picture_keeps_every_pixel() {
        let pixels: Vec<u8> = (0..3 * 2 * 3).collect();
        let (png, size) = written(&[b"P6\n3 2\n255\n", &pixels[..]].concat()).unwrap();
        assert_eq!(size, (3, 2));
        assert_eq!(decode(&png), (3, 2, pixels));
    }

    #[test]
    fn a_picture_that_ends_early_and_what_is_none_are_said_to_be_that() {
        let error = written(b"P6\n2 1\n255\n\xff\xff\xff").unwrap_err();
        assert!(error.starts_with("it can't be put as a PNG: "), "{error}");
        for bytes in [&b""[..], b"\x89PNG\r\n\x1a\n", b"P6\n0 0\n255\n", b"P5\n1 1\n255\nx"] {
            assert!(written(bytes).unwrap_err().starts_with("QEMU wrote no picture: "));
        }
    }

    #[test]
    fn what_a_qemu_writes_beyond_its_picture_is_not_looked_at() {
        let (ours, theirs) = memory().unwrap();
        let theirs = File::from(theirs);
        theirs.write_all_at(b"P6\n1 1\n255\nabc", 0).unwrap();
        // A terabyte of nothing, as a hostile one may claim to have written.
        theirs.set_len(1 << 40).unwrap();
        let (png, _) = Raw(ours).to_png().unwrap();
        assert_eq!(decode(&png), (1, 1, b"abc".to_vec()));
    }

    #[test]
    fn a_qemu_can_empty_the_memory_when_it_opens_it_and_cannot_read_it() {
        let (_ours, theirs) = memory().unwrap();
        let theirs = File::from(theirs);
        theirs.set_len(0).unwrap();
        assert!(theirs.read_at(&mut [0], 0).is_err());
    }

    #[test]
    fn a_picture_that_compresses_badly_ends_at_the_bound() {
        let header = ppm::header(b"P6 4096 4096 255 ").unwrap();
        let state = std::cell::Cell::new(1_u32);
        let noise = |row: &mut [u8], _: u64| {
            for byte in row {
                let x = state.get();
                let x = x ^ (x << 13);
                let x = x ^ (x >> 17);
                state.set(x ^ (x << 5));
                *byte = state.get().to_le_bytes()[0];
            }
            Ok(())
        };
        let error = png(&header, noise).unwrap_err();
        assert!(error.to_string().contains("larger than"), "{error}");
    }
}
