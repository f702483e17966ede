//! The `ratoon` program. See `ratoon --help`.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    if let Err(e) = ratoon::interrupt::install() {
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
