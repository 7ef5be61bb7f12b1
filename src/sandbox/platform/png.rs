//! PNG images in black and white.

use std::io::{self, Write};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

const SIGNATURE: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// Bit depth 1, greyscale, and the only methods of compression, filter and interlace.
const FORMAT: [u8; 5] = [1, 0, 0, 0, 0];

/// Makes an image of `width` times `height` pixels, of which `is_white` tells the colour.
pub(super) fn image(width: u32, height: u32, is_white: impl Fn(u32, u32) -> bool) -> io::Result<Vec<u8>> {
    let mut rows = ZlibEncoder::new(Vec::new(), Compression::fast());
    for y in 0..height {
        // Filter type 0: the bytes as they are.
        let mut row = vec![0];
        for x in (0..width).step_by(8) {
            let bits = (0..8).map(|bit| (bit, x.saturating_add(bit)));
            row.push(
                bits.filter(|(_, x)| *x < width && is_white(*x, y))
                    .fold(0, |byte, (bit, _)| byte | 0x80 >> bit),
            );
        }
        rows.write_all(&row)?;
    }
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &FORMAT].concat();
    let mut image = SIGNATURE.to_vec();
    for (kind, content) in [(b"IHDR", header), (b"IDAT", rows.finish()?), (b"IEND", Vec::new())] {
        let length = u32::try_from(content.len()).map_err(io::Error::other)?;
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(&content);
        image.extend(length.to_be_bytes());
        image.extend(kind);
        image.extend(content);
        image.extend(crc.sum().to_be_bytes());
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::ZlibDecoder;

    use super::*;

    #[test]
    fn an_image_has_the_chunks_and_rows_of_a_png() {
        let image = image(10, 2, |x, y| x == 9 && y == 1).expect("an image");
        assert_eq!(image[..8], SIGNATURE);
        let mut chunks = Vec::new();
        let mut rest = &image[8..];
        while let [a, b, c, d, after @ ..] = rest {
            let (body, after) = after.split_at(4 + u32::from_be_bytes([*a, *b, *c, *d]) as usize);
            let (crc, after) = after.split_at(4);
            let mut expected = Crc::new();
            expected.update(body);
            assert_eq!(crc, expected.sum().to_be_bytes());
            chunks.push(body.to_vec());
            rest = after;
        }
        let [header, data, end] = chunks.as_slice() else { panic!("{} chunks", chunks.len()) };
        assert_eq!(header, b"IHDR\0\0\0\x0a\0\0\0\x02\x01\0\0\0\0");
        assert_eq!(end, b"IEND");
        let mut rows = Vec::new();
        ZlibDecoder::new(&data[4..]).read_to_end(&mut rows).expect("a stream");
        assert_eq!(rows, [0, 0, 0, 0, 0, 0x40]);
    }
}
