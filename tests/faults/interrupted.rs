//! SIGTERM and SIGINT at each change that a verb makes: exit code 130, finished work kept, temporary files gone.

use super::trace::{Fault, count};
use super::verbs::{Attempt, DISTILL, FINETUNE, FINETUNE_FULL, PRUNE, RUN, RUN_UNFINISHED, UNFINISHED, Workshop};
use std::path::{Path, PathBuf};

/// Sends a signal at each change of `verb`, SIGTERM and SIGINT in turn; `check` sees what an interrupted run leaves. Then the
/// same command is given again.
fn interrupted_at_each_change(verb: &str, check: impl Fn(&Attempt)) {
    interrupted_at_every(1, verb, check);
}

/// The same at every `step`-th change.
fn interrupted_at_every(step: usize, verb: &str, check: impl Fn(&Attempt)) {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let changes = count(&mut whole.command(verb));
    let mut interrupted = 0;
    for at in (0..changes).step_by(step) {
        let attempt = workshop.attempt("interrupted");
        let signal = [libc::SIGTERM, libc::SIGINT][at % 2];
        let ended = attempt.run(verb, Fault::Signal(signal), at);
        // A signal that comes when there is nothing left to stop changes nothing.
        if ended.status.code() != Some(0) {
            assert_eq!(ended.status.code(), Some(130), "signal {signal} at change {at}: {}", ended.stderr);
            assert_eq!(
                ended.stderr,
                "error: interrupted; finished work is kept, run the same command again to go on\n"
            );
            check(&attempt);
            interrupted += 1;
        }
        assert!(attempt.finish(verb) == whole.results(), "signal {signal} at change {at} of {changes}");
    }
    assert!(interrupted > changes / step / 4, "{interrupted} of {changes} by {step}");
}

#[test]
fn an_interrupted_cut_leaves_nothing() {
    interrupted_at_each_change(PRUNE, |attempt| assert!(attempt.results().is_empty()));
}

#[test]
fn an_interrupted_distillation_leaves_its_rows() {
    interrupted_at_each_change(DISTILL, |attempt| {
        assert!(attempt.results().keys().eq(&UNFINISHED.map(PathBuf::from)), "{:?}", attempt.results().keys());
    });
}

/// What was logged is in the newest checkpoint, and no temporary file stands beside it.
fn steps_are_kept(attempt: &Attempt) {
    assert_eq!(attempt.hidden(), [] as [PathBuf; 0]);
    let out = attempt.dir.join("out");
    let logged = std::fs::read_to_string(out.join("log.jsonl")).unwrap().lines().count();
    let step = |name: &Path| name.to_str()?.strip_prefix("checkpoint-")?.parse().ok();
    let entries = std::fs::read_dir(&out).unwrap().map(|entry| PathBuf::from(entry.unwrap().file_name()));
    assert_eq!(entries.filter_map(|name| step(&name)).max(), Some(logged));
}

#[test]
fn an_interrupted_training_of_an_adapter_leaves_its_steps() {
    interrupted_at_each_change(FINETUNE, steps_are_kept);
}

#[test]
fn an_interrupted_training_of_all_weights_leaves_its_steps() {
    interrupted_at_each_change(FINETUNE_FULL, steps_are_kept);
}

#[test]
fn an_interrupted_recipe_leaves_whole_stages_and_the_rows_and_steps_of_the_one_it_was_in() {
    interrupted_at_every(29, RUN, |attempt| {
        let hidden = attempt.hidden();
        assert!(hidden.iter().all(|path| RUN_UNFINISHED.iter().any(|name| path.ends_with(name))), "{hidden:?}");
    });
}
