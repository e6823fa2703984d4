//! Recording and replay.
