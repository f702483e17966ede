//! The `ratoon` program. See `ratoon --help`.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    // `ratoon inspect DIR | head` ends quietly, as other programs do, instead of failing on a closed pipe.
    // SAFETY: called before any thread is started; the default action needs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // A write past the limit on file sizes (`ulimit -f`) is an error that names the file, and not a silent death.
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let cli = cli::Cli::parse();
    let handlers = ratoon::interrupt::install().and_then(|()| ratoon::model::mapped::install_fault_handler());
    if let Err(e) = handlers {
        cli::say(&format!("error: cannot install the signal handlers: {e}"));
        return ExitCode::from(4);
    }
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line, whatever a template or a file's name puts into it.
            cli::say(&format!("error: {}", error.to_string().replace(['\n', '\r'], " ")));
            ExitCode::from(error.exit_code())
        }
    }
}
