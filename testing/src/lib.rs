//! How much tests do: little enough to be run all the time, or all there is.

#![forbid(unsafe_code)]

/// Set to `full`, tests that otherwise take a sample of their cases run all of them, as CI does.
const VARIABLE: &str = "SAMSARA_TESTS";

/// Whether all cases are to be run.
///
/// # Panics
///
/// If the variable is set to something else: a run with fewer cases than meant would mislead.
pub fn is_full() -> bool {
    match std::env::var(VARIABLE).as_deref() {
        Ok("full") => true,
        Ok("") | Err(_) => false,
        Ok(other) => panic!("{VARIABLE} takes \"full\" or nothing, not {other:?}"),
    }
}

/// One of two, by how much is to be done.
pub fn by_effort<T>(sample: T, full: T) -> T {
    if is_full() { full } else { sample }
}

/// The number in an environment variable, if it is set.
///
/// # Panics
///
/// If it is set to something else: a run with another number than meant would mislead.
pub fn number_from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse().ok();
    assert!(number.is_some(), "{name} takes a number, not {text:?}");
    number
}
