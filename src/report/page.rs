//! The page: one HTML file without a reference to anything outside it.

use super::{Report, charts};
use crate::error::{Error, Result};
use minijinja::value::{Serde, Value};
use std::path::Path;

/// The report as HTML. `path` is where it will be written, for error messages.
pub fn render(report: &Report, path: &Path) -> Result<String> {
    let broken = |e: minijinja::Error| Error::format(path, "page", "a template that renders", e.to_string());
    let mut env = minijinja::Environment::new();
    env.add_filter("fixed", |v: f64, digits: usize| format!("{v:.digits$}"));
    env.add_filter("percent", |v: f64| format!("{:.1} %", 100.0 * v));
    env.add_filter("thousands", |v: f64| thousands(v as u64));
    env.add_filter("si", si);
    env.add_filter("duration", duration);
    env.add_template("page.html", include_str!("page.html")).map_err(broken)?;
    let context = minijinja::context! {
        report => Value::from(Serde(report)),
        heatmap => safe(&report.heatmap_svg),
        losses => safe(&charts::losses(&report.losses)),
        quality => safe(&charts::quality(&report.models)),
        roofline => safe(&charts::roofline(&report.operations, [report.peak_flops, report.peak_f32_flops], report.peak_bandwidth)),
    };
    env.get_template("page.html").and_then(|page| page.render(context)).map_err(broken)
}

/// SVG text that the page takes as it is.
fn safe(svg: &str) -> Value {
    Value::from_safe_string(svg.to_string())
}

/// `134515008` as `134,515,008`.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|g| std::str::from_utf8(g).unwrap_or("")).collect();
    groups.join(",")
}

/// A number with an SI prefix: `2.69e8` as `269 M`.
fn si(value: f64) -> String {
    let prefixes = [(1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match prefixes.iter().find(|(scale, _)| value >= *scale) {
        Some((scale, prefix)) => {
            let scaled = value / scale;
            let digits = if scaled >= 100.0 {
                0
            } else if scaled >= 10.0 {
                1
            } else {
                2
            };
            format!("{scaled:.digits$} {prefix}")
        }
        None => format!("{value:.0} "),
    }
}

/// Seconds as `12.3 s` or `4 min 5 s`.
fn duration(seconds: f64) -> String {
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    format!("{} min {} s", whole / 60, whole % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(thousands(134_515_008), "134,515,008");
        assert_eq!(thousands(12), "12");
        assert_eq!(si(269_030_016.0), "269 M");
        assert_eq!(si(2.5e13), "25.0 T");
        assert_eq!(duration(245.4), "4 min 5 s");
    }
}
