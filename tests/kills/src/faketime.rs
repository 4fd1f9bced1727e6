//! Another time on the clock of one process, by libfaketime.

use std::path::Path;

/// The variables that put a process's clock off, such as by `+6d`: the one on the wall, not the one that only counts. `None`
/// where libfaketime is not installed.
pub fn clock(offset: &str) -> Option<Vec<(String, String)>> {
    let library = library()?;
    let settings =
        [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    Some(settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())
}

/// Where Debian and others put it.
fn library() -> Option<String> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let places = [format!("/usr/lib/{triple}"), "/usr/lib64".to_owned(), "/usr/lib".to_owned()];
    let found = places.map(|place| format!("{place}/faketime/libfaketime.so.1"));
    found.into_iter().find(|path| Path::new(path).exists())
}
