//! Devices as `--device` names them.

use crate::error::Error;
use std::fmt;
use std::str::FromStr;

/// `cpu`, or `cuda:N`: the N-th card that the driver shows, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA card by its number.
    Cuda(usize),
}

impl FromStr for DeviceName {
    type Err = Error;

    /// Reads `cpu`, `cuda` (which is `cuda:0`) and `cuda:N`.
    fn from_str(text: &str) -> Result<DeviceName, Error> {
        let ordinal = match text.split_once(':') {
            None if text == "cpu" => return Ok(DeviceName::Cpu),
            None if text == "cuda" => Some(0),
            Some(("cuda", ordinal)) => ordinal.parse().ok(),
            _ => None,
        };
        let error = || Error::usage("--device", "cpu, cuda or cuda:N", text);
        ordinal.map(DeviceName::Cuda).ok_or_else(error)
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => f.write_str("cpu"),
            DeviceName::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_others_are_refused() {
        let name = |text: &str| text.parse::<DeviceName>().ok();
        assert_eq!(name("cpu"), Some(DeviceName::Cpu));
        assert_eq!(name("cuda"), Some(DeviceName::Cuda(0)));
        assert_eq!(name("cuda:3"), Some(DeviceName::Cuda(3)));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "CUDA"] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
        assert_eq!(DeviceName::Cuda(2).to_string().parse::<DeviceName>().unwrap(), DeviceName::Cuda(2));
    }
}
