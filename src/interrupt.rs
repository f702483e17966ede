//! SIGINT and SIGTERM: a flag that long loops ask between units of work, so that what is finished is kept.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

fn flag() -> &'static Arc<AtomicBool> {
    FLAG.get_or_init(Arc::default)
}

/// Makes SIGINT and SIGTERM set the flag; a second one ends the process at once with 130. The program calls this, a library
/// user may.
pub fn install() -> std::io::Result<()> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag().clone())?;
        signal_hook::flag::register(signal, flag().clone())?;
    }
    Ok(())
}

/// [`Error::Interrupted`] once a signal has arrived.
pub fn check() -> Result<()> {
    if flag().load(Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}
