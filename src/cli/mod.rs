//! The command line: one file a verb, each parses its arguments, calls one library function and prints.

/// As in std, but a stdout that cannot be written (a full disk behind a redirection) ends the program with a line and exit code 4
/// instead of a panic.
macro_rules! print {
    ($($text:tt)*) => { $crate::cli::write_stdout(format_args!($($text)*)) };
}

/// As in std, with [`print!`].
macro_rules! println {
    () => { print!("\n") };
    ($($text:tt)*) => { print!("{}\n", format_args!($($text)*)) };
}

mod bench;
mod convert;
mod distill;
mod doctor;
mod engine;
mod eval;
mod finetune;
mod flops;
mod generate;
mod init;
mod inspect;
mod join;
mod merge;
mod model_args;
mod plan;
mod prune;
mod run;
mod score;
mod summary;
mod train_step;

use ratoon::Result;
use ratoon::device::{Compute, Device, DeviceName, Weights};
use std::io::Write;
use std::path::Path;

/// Heading in `--help` of the options that every verb has, so that they do not stand among its own.
const EVERY_COMMAND: &str = "Options of every command";

/// Cut decoder blocks out of a Llama-family model and grow the quality back by self-data distillation.
#[derive(clap::Parser)]
#[command(name = "ratoon", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Print results as JSON on stdout.
    #[arg(long, global = true, help_heading = EVERY_COMMAND)]
    json: bool,
    /// No progress on stderr.
    #[arg(long, short, global = true, help_heading = EVERY_COMMAND)]
    quiet: bool,
    /// Worker threads, at most 1024 [default: all cores].
    #[arg(long, global = true, help_heading = EVERY_COMMAND, env = "RATOON_THREADS",
        value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Device that computes: cpu, cuda or cuda:N.
    #[arg(long, global = true, help_heading = EVERY_COMMAND, env = "RATOON_DEVICE", default_value = "cpu")]
    device: DeviceName,
    /// Show FLOPs, bytes and seconds of every operation on stderr at the end.
    #[arg(long, global = true, help_heading = EVERY_COMMAND)]
    profile: bool,
    #[command(subcommand)]
    command: Command,
}

/// What every verb gets.
pub struct Context {
    /// The device that computes.
    pub device: Device,
    /// Results as JSON.
    pub json: bool,
}

/// Precision of products, for the verbs that let it be chosen.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Precision {
    Bf16,
    F32,
}

/// How weights are kept, for the verbs that only read them.
#[derive(Clone, Copy, clap::ValueEnum)]
enum WeightFormat {
    /// As the model has them; without loss in 12 bits where products of bf16 restore them (AVX-512 BF16).
    Stored,
    /// 8 bits and a scale for each 32.
    Int8,
}

impl From<WeightFormat> for Weights {
    fn from(format: WeightFormat) -> Weights {
        match format {
            WeightFormat::Stored => Weights::Stored,
            WeightFormat::Int8 => Weights::Int8,
        }
    }
}

impl From<Precision> for Compute {
    fn from(precision: Precision) -> Compute {
        match precision {
            Precision::Bf16 => Compute::Bf16,
            Precision::F32 => Compute::F32,
        }
    }
}

#[derive(clap::Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Convert(convert::Args),
    Init(init::Args),
    Score(score::Args),
    Prune(prune::Args),
    Generate(Box<generate::Args>),
    Distill(distill::Args),
    Join(join::Args),
    Finetune(Box<finetune::Args>),
    Merge(merge::Args),
    Eval(eval::Args),
    Flops(flops::Args),
    Bench(bench::Args),
    Run(run::Args),
    Doctor(doctor::Args),
}

impl Command {
    /// Whether a device is used: the other verbs work where the one that `RATOON_DEVICE` names does not, `doctor` above all.
    fn computes(&self) -> bool {
        use Command::*;
        !matches!(self, Inspect(_) | Convert(_) | Init(_) | Prune(_) | Join(_) | Doctor(_))
    }

    fn run(self, context: &Context) -> Result<()> {
        match self {
            Command::Inspect(args) => inspect::run(args, context),
            Command::Convert(args) => convert::run(args, context),
            Command::Init(args) => init::run(args, context),
            Command::Score(args) => score::run(args, context),
            Command::Prune(args) => prune::run(args, context),
            Command::Generate(args) => generate::run(*args, context),
            Command::Distill(args) => distill::run(args, context),
            Command::Join(args) => join::run(args, context),
            Command::Finetune(args) => finetune::run(*args, context),
            Command::Merge(args) => merge::run(args, context),
            Command::Eval(args) => eval::run(args, context),
            Command::Flops(args) => flops::run(args, context),
            Command::Bench(args) => bench::run(args, context),
            Command::Run(args) => run::run(args, context),
            Command::Doctor(args) => doctor::run(args, context),
        }
    }
}

fn write_stdout(text: std::fmt::Arguments) {
    let mut stdout = std::io::stdout().lock();
    if let Err(e) = stdout.write_fmt(text).and_then(|()| stdout.flush()) {
        let error = ratoon::Error::io(Path::new("stdout"), "write")(e);
        say(&format!("error: {error}"));
        std::process::exit(error.exit_code().into());
    }
}

/// A line for people. That stderr cannot be written ends nothing.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs the parsed command.
pub fn run(cli: Cli) -> Result<()> {
    ratoon::progress::enable(!cli.quiet);
    if let Some(threads) = cli.threads {
        let built = rayon::ThreadPoolBuilder::new().num_threads(threads.into()).build_global();
        built
            .map_err(|e| ratoon::Error::usage("--threads", "a number of threads that can be started", e.to_string()))?;
    }
    let device = if cli.command.computes() { Device::open(cli.device)? } else { Device::cpu() };
    let context = Context { device, json: cli.json };
    if cli.profile {
        context.device.profile();
    }
    let (device, start) = (context.device.clone(), std::time::Instant::now());
    cli.command.run(&context)?;
    device.synchronize()?;
    let elapsed = start.elapsed();
    if cli.profile {
        say(&summary::profile(&device).to_string());
    }
    if !cli.quiet {
        say(&summary::line(&device, elapsed));
    }
    Ok(())
}
