//! Content: the bytes of one file. This layer knows neither files nor peers.

pub mod blocks;
pub mod chunk;
pub mod delta;
pub mod encode;
pub mod hash;
pub mod hex;
pub mod pack;
pub mod sample;
pub mod seal;
pub mod shift_map;

#[cfg(test)]
pub(crate) mod testing;
