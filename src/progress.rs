//! Progress with rate and ETA on stderr: a bar on a terminal, plain lines elsewhere, nothing unless the program asks for it.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Turns progress on; library users see none by default.
pub fn enable(on: bool) {
    ENABLED.store(on, Relaxed);
}

/// Prints one line for people (stderr), above any running bar's line. Silent unless progress is on.
pub fn line(text: &str) {
    if ENABLED.load(Relaxed) {
        say(text);
    }
}

/// A line on stderr. That it cannot be written, as when a log's disk is full, ends no run.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Seconds between plain lines when stderr is not a terminal.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// Progress of one stage. Ends its line when dropped.
pub struct Progress {
    bar: ProgressBar,
    label: String,
    unit: &'static str,
    plain: Option<Mutex<Instant>>,
    start: Instant,
}

impl Progress {
    /// Starts a stage of `total` units (0: unknown).
    pub fn start(label: &str, total: u64, unit: &'static str) -> Progress {
        let enabled = ENABLED.load(Relaxed);
        let terminal = std::io::stderr().is_terminal();
        let target =
            if enabled && terminal { ProgressDrawTarget::stderr_with_hz(4) } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        let template = "{prefix} [{bar:28}] {human_pos}/{human_len} {per_sec} ETA {eta} {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(label.to_string());
        bar.enable_steady_tick(Duration::from_millis(500));
        let plain = (enabled && !terminal).then(|| {
            say(&format!("{label}: {total} {unit}"));
            Mutex::new(Instant::now())
        });
        Progress { bar, label: label.to_string(), unit, plain, start: Instant::now() }
    }

    /// Counts `n` finished units.
    pub fn add(&self, n: u64) {
        self.bar.inc(n);
        let Some(plain) = &self.plain else { return };
        let Ok(mut last) = plain.lock() else { return };
        if last.elapsed() < PLAIN_INTERVAL {
            return;
        }
        *last = Instant::now();
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let rate = done as f64 / self.start.elapsed().as_secs_f64();
        let eta = total.saturating_sub(done) as f64 / rate.max(1e-9);
        let (label, unit, message) = (&self.label, self.unit, self.bar.message());
        let line = format!("{label}: {done}/{total} {unit}, {rate:.1} {unit}/s, ETA {eta:.0} s {message}");
        say(line.trim_end());
    }

    /// Shows a short text behind the numbers (a loss, a rate).
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Before the bar ends, which moves it to its total: a stage that stops early has not done that.
        let done = self.bar.position();
        self.bar.finish_and_clear();
        if ENABLED.load(Relaxed) {
            let seconds = self.start.elapsed().as_secs_f64();
            let line = format!("{}: {done} {} in {seconds:.1} s {}", self.label, self.unit, self.bar.message());
            say(line.trim_end());
        }
    }
}
