//! A whole recipe, killed again and again.

use super::trace::{Fault, count};
use super::verbs::{RUN, RUN_OTHER, Workshop};

#[test]
fn a_recipe_killed_every_few_changes_ends_with_the_bytes_of_an_unbroken_one() {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let changes = count(&mut whole.command(RUN));
    // Each run makes some changes again before it makes new ones: a shorter stride might never get anywhere.
    for stride in [110, 170] {
        let attempt = workshop.attempt("killed");
        let mut kills = 0;
        loop {
            let ended = attempt.run(RUN, Fault::Kill, stride);
            match ended.status.code() {
                None => kills += 1,
                code => break assert_eq!(code, Some(0), "{}", ended.stderr),
            }
            assert!(kills <= changes, "killed every {stride} changes it gets on");
        }
        assert!(kills >= changes / stride, "{kills} of {changes} by {stride}");
        assert!(attempt.results() == whole.results(), "killed every {stride} changes");
    }
}

#[test]
fn a_recipe_killed_once_anywhere_ends_with_the_bytes_of_an_unbroken_one() {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let changes = count(&mut whole.command(RUN));
    for at in (5..changes).step_by(29) {
        let attempt = workshop.attempt("killed");
        let ended = attempt.run(RUN, Fault::Kill, at);
        assert_eq!(ended.status.code(), None, "{}", ended.stderr);
        assert!(attempt.finish(RUN) == whole.results(), "killed before change {at} of {changes}");
    }
}

#[test]
fn a_recipe_killed_under_other_settings_takes_nothing_half_removed_for_its_own() {
    let workshop = Workshop::new();
    let whole = workshop.attempt("whole");
    let want = whole.finish(RUN);
    // From the first change that the other settings make to well into the training that they ask for.
    for at in (0..60).step_by(4) {
        let attempt = workshop.attempt("killed");
        attempt.finish(RUN);
        let ended = attempt.run(RUN_OTHER, Fault::Kill, at);
        assert_eq!(ended.status.code(), None, "{}", ended.stderr);
        assert!(attempt.finish(RUN) == want, "killed before change {at}");
    }
}
