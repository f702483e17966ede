//! The one error type. Every message names the file (or the option), the place in it, what was expected and what was found.

use std::io;
use std::path::{Path, PathBuf};

/// `std::result::Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by whose turn it is to act. [`Error::exit_code`] gives the process exit code of each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a read, a write or a lookup. Exit code 4.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// File or directory that was touched.
        path: PathBuf,
        /// What was being done, as a verb phrase ("read", "create").
        action: &'static str,
        /// The system's own words.
        source: io::Error,
    },
    /// A file's content breaks its format or contradicts another file. Exit code 3.
    #[error("{}: {place}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Tensor, key, line or byte offset inside it.
        place: String,
        /// What a right file has there.
        expected: String,
        /// What this file has there.
        found: String,
    },
    /// A file is sound but asks for something that is not implemented. Exit code 3.
    #[error("{}: {what} is not supported; {instead}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The feature, named as the file names it.
        what: String,
        /// What is supported, or how to convert.
        instead: String,
    },
    /// Options that contradict each other or the model. Exit code 2.
    #[error("{option}: expected {expected}, found {found}")]
    Usage {
        /// The option or recipe key.
        option: String,
        /// What it accepts.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Planned memory or disk exceeds what there is. Exit code 5.
    #[error("{what} needs {needed} bytes, {available} are available; {instead}")]
    Budget {
        /// What needs it.
        what: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes available.
        available: u64,
        /// Which setting to change.
        instead: String,
    },
    /// Another process is writing the same output. Exit code 6.
    #[error("{}: another process is writing here (lock held); wait for it or choose another output", path.display())]
    Locked {
        /// The output directory or file.
        path: PathBuf,
    },
    /// An operation was called with tensors whose shapes or dtypes do not fit. Exit code 1.
    #[error("{op}: {argument}: expected {expected}, found {found}")]
    Shape {
        /// Operation name.
        op: &'static str,
        /// Argument name.
        argument: &'static str,
        /// Shape or dtype needed.
        expected: String,
        /// Shape or dtype given.
        found: String,
    },
    /// A number became NaN or infinite where it must not. Exit code 7.
    #[error("{place}: not finite ({value}); {instead}")]
    NotFinite {
        /// Tensor, step or token.
        place: String,
        /// The value seen.
        value: f32,
        /// What to try.
        instead: String,
    },
    /// A child program (pip) failed. Exit code 4.
    #[error("{program} failed: {message}")]
    Program {
        /// The command line.
        program: String,
        /// Its last words.
        message: String,
    },
    /// The GPU or its driver is missing, too old or refuses. Exit code 4.
    #[error("{device}: {problem}; {instead}")]
    Device {
        /// The device as `--device` names it.
        device: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        instead: String,
    },
    /// SIGINT or SIGTERM arrived; what was finished is kept. Exit code 130.
    #[error("interrupted; finished work is kept, run the same command again to go on")]
    Interrupted,
}

impl Error {
    /// Wraps an I/O error with the path it concerns: `.map_err(Error::io(path, "read"))`.
    pub fn io<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Error + 'a {
        move |source| Error::Io { path: path.to_path_buf(), action, source }
    }

    /// A [`Error::Format`].
    pub fn format(
        path: &Path,
        place: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Format { path: path.to_path_buf(), place: place.into(), expected: expected.into(), found: found.into() }
    }

    /// A [`Error::Unsupported`].
    pub fn unsupported(path: &Path, what: impl Into<String>, instead: impl Into<String>) -> Error {
        Error::Unsupported { path: path.to_path_buf(), what: what.into(), instead: instead.into() }
    }

    /// A [`Error::Usage`].
    pub fn usage(option: impl Into<String>, expected: impl Into<String>, found: impl Into<String>) -> Error {
        Error::Usage { option: option.into(), expected: expected.into(), found: found.into() }
    }

    /// A [`Error::Shape`].
    pub fn shape(
        op: &'static str,
        argument: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Shape { op, argument, expected: expected.into(), found: found.into() }
    }

    /// The documented process exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Shape { .. } => 1,
            Error::Usage { .. } => 2,
            Error::Format { .. } | Error::Unsupported { .. } => 3,
            Error::Io { .. } | Error::Program { .. } | Error::Device { .. } => 4,
            Error::Budget { .. } => 5,
            Error::Locked { .. } => 6,
            Error::NotFinite { .. } => 7,
            Error::Interrupted => 130,
        }
    }
}
