//! Stands in for `protobuf-src`, which would build protobuf from its C++ source for ten minutes to have a `protoc` that raft's
//! build asks for only when there is none. Here there is one: `apt-get install protobuf-compiler`.

use std::path::PathBuf;

/// The system's `protoc`.
pub fn protoc() -> PathBuf {
    PathBuf::from("protoc")
}
