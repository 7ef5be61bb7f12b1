//! The disk: everything that touches files. Knows neither the engine nor the wire.
