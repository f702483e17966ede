//! The `ratoon` program. See `ratoon --help`.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let handlers = ratoon::interrupt::install().and_then(|()| ratoon::model::mapped::install_fault_handler());
    if let Err(e) = handlers {
        eprintln!("error: cannot install the signal handlers: {e}");
        return ExitCode::from(4);
    }
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
