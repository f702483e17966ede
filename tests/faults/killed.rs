//! SIGKILL before each change that a verb makes.

use super::trace::{Fault, count};
use super::verbs::{
    DISTILL, DISTILL_AGAIN, DISTILL_OTHER, FINETUNE, FINETUNE_AGAIN, FINETUNE_FULL, PRUNE, REPLACE, Workshop,
};
use std::path::Path;

/// Kills `verb` before each of its changes, each time from the start, and gives the same command again.
fn killed_before_each_change(verb: &str) {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let changes = count(&mut whole.command(verb));
    for at in 0..changes {
        let attempt = workshop.attempt("killed");
        let ended = attempt.run(verb, Fault::Kill, at);
        assert_eq!(ended.status.code(), None, "killed before change {at} of {changes}: {}", ended.stderr);
        let got = attempt.finish(verb);
        assert!(got == whole.results(), "killed before change {at} of {changes}: {:?}", got.keys());
    }
}

#[test]
fn a_cut_killed_anywhere_is_absent_or_whole() {
    killed_before_each_change(PRUNE);
}

#[test]
fn a_distillation_killed_anywhere_goes_on_to_the_same_bytes() {
    killed_before_each_change(DISTILL);
}

#[test]
fn a_training_of_an_adapter_killed_anywhere_goes_on_to_the_same_bytes() {
    killed_before_each_change(FINETUNE);
}

#[test]
fn a_training_of_all_weights_killed_anywhere_goes_on_to_the_same_bytes() {
    killed_before_each_change(FINETUNE_FULL);
}

#[test]
fn an_output_that_is_replaced_is_the_old_or_the_new_one_at_any_moment() {
    let workshop = Workshop::new();
    let (old, new) = (workshop.attempt("old"), workshop.attempt("new"));
    let (before, after) = (old.finish(PRUNE), new.finish(REPLACE));
    let counted = workshop.attempt("counted");
    counted.finish(PRUNE);
    let changes = count(&mut counted.command(REPLACE));
    let (mut kept, mut replaced) = (0, 0);
    for at in 0..changes {
        let attempt = workshop.attempt("killed");
        attempt.finish(PRUNE);
        attempt.run(REPLACE, Fault::Kill, at);
        let visible = attempt.results().into_iter().filter(|(path, _)| path.starts_with("out")).collect();
        kept += usize::from(before == visible);
        replaced += usize::from(after == visible);
        assert!(attempt.finish(REPLACE) == after, "killed before change {at} of {changes}");
    }
    assert_eq!(kept + replaced, changes, "{kept} times the old one, {replaced} times the new one");
}

#[test]
fn a_distillation_that_is_started_again_never_takes_old_rows_for_new_ones() {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let want = whole.finish(DISTILL);
    let counted = workshop.attempt("counted");
    counted.finish(DISTILL_OTHER);
    let changes = count(&mut counted.command(DISTILL_AGAIN));
    let (mut old, mut gone_on) = (0, 0);
    for at in 0..changes {
        let attempt = workshop.attempt("killed");
        let before = attempt.finish(DISTILL_OTHER);
        attempt.run(DISTILL_AGAIN, Fault::Kill, at);
        // Without --overwrite: goes on with what was begun, or leaves alone what is there.
        match attempt.command(DISTILL).output().unwrap().status.code() {
            Some(0) => {
                assert!(attempt.results() == want, "killed before change {at} of {changes}");
                gone_on += 1;
            }
            code => {
                assert_eq!(code, Some(2), "killed before change {at} of {changes}");
                let kept = &attempt.results()[Path::new("out.jsonl")];
                assert_eq!(kept, &before[Path::new("out.jsonl")], "killed before change {at} of {changes}");
                old += 1;
            }
        }
        assert!(attempt.finish(DISTILL_AGAIN) == want, "killed before change {at} of {changes}");
    }
    assert!(old > 0 && gone_on > 0, "{old}, {gone_on}");
}

#[test]
fn a_training_that_is_started_again_keeps_nothing_of_the_old_one() {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let want = whole.finish(FINETUNE);
    // The old output is gone by then; the rest is as in a training from the start.
    for at in 0..40 {
        let attempt = workshop.attempt("killed");
        attempt.finish(FINETUNE_FULL);
        let ended = attempt.run(FINETUNE_AGAIN, Fault::Kill, at);
        assert_eq!(ended.status.code(), None, "{}", ended.stderr);
        assert!(attempt.finish(FINETUNE_AGAIN) == want, "killed before change {at}");
    }
}
