//! Whether a rewrite is kept.

use crate::data::answer::{self, Verdict};
use crate::generate::{Completion, Finish};
use serde::{Deserialize, Serialize};

/// Why a rewrite was kept or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Kept: its final answer is the row's.
    AnswerSame,
    /// Kept: the row has no checkable answer.
    NoCheckableAnswer,
    /// Refused: nothing was written.
    Empty,
    /// Refused: cut by the length limit.
    Length,
    /// Refused: it talks of the reference answer or of its own task.
    TalksOfReference,
    /// Refused: no final answer was found in it.
    AnswerMissing,
    /// Refused: its final answer is another one.
    AnswerDiffers,
    /// Refused: the prompt with the reference answer does not fit the model's context.
    Error,
}

impl Reason {
    /// Every reason, kept ones first.
    pub const ALL: [Reason; 8] = [
        Reason::AnswerSame,
        Reason::NoCheckableAnswer,
        Reason::Empty,
        Reason::Length,
        Reason::TalksOfReference,
        Reason::AnswerMissing,
        Reason::AnswerDiffers,
        Reason::Error,
    ];

    /// Whether the rewrite takes the place of the original.
    pub fn kept(self) -> bool {
        matches!(self, Reason::AnswerSame | Reason::NoCheckableAnswer)
    }
}

/// Phrases, in lower case, by which a rewrite gives away that it was written to a prompt with an answer in it.
pub const GIVEAWAYS: [&str; 12] = [
    "reference answer",
    "reference solution",
    "reference response",
    "the reference",
    "provided answer",
    "provided solution",
    "given solution",
    "your response",
    "my response",
    "your own words",
    "now it's your turn",
    "### response",
];

/// Judges a rewrite: `reply` is its whole text (the forced opening included), `answer` the row's checkable answer.
pub fn judge(completion: &Completion, reply: &str, answer: Option<&str>) -> Reason {
    if completion.finish == Finish::Dropped {
        return Reason::Error;
    }
    if completion.finish == Finish::Length {
        return Reason::Length;
    }
    if completion.text.trim().is_empty() {
        return Reason::Empty;
    }
    let lower = reply.to_lowercase().replace('\u{2019}', "'");
    if GIVEAWAYS.iter().any(|phrase| lower.contains(phrase)) {
        return Reason::TalksOfReference;
    }
    match answer.map(|answer| answer::check(reply, answer)) {
        None => Reason::NoCheckableAnswer,
        Some(Verdict::Same) => Reason::AnswerSame,
        Some(Verdict::Missing) => Reason::AnswerMissing,
        Some(Verdict::Differs(_)) => Reason::AnswerDiffers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reply_is_kept_or_refused_for_the_reason_a_reader_would_give() {
        use Finish::*;
        let table = [
            (Stop, "3 + 4 makes 7.", Some("7"), Reason::AnswerSame),
            (Stop, "3 + 4 makes 8.", Some("7"), Reason::AnswerDiffers),
            (Stop, "It makes seven.", Some("7"), Reason::AnswerMissing),
            (Stop, "Rivers carry water.", None, Reason::NoCheckableAnswer),
            (Stop, "", Some("7"), Reason::Empty),
            (Stop, " \n", None, Reason::Empty),
            (Length, "3 + 4 makes 7", Some("7"), Reason::Length),
            (Length, "", Some("7"), Reason::Length),
            (Dropped, "", Some("7"), Reason::Error),
            (Stop, "As the Reference Answer says, 7.", Some("7"), Reason::TalksOfReference),
            (Stop, "Now it’s your turn! 7", Some("7"), Reason::TalksOfReference),
            (Stop, "Here is my response: 7", None, Reason::TalksOfReference),
        ];
        for (finish, text, answer, want) in table {
            let text = text.to_string();
            let completion = Completion {
                ids: Vec::new(),
                text,
                finish,
                prompt_tokens: 1,
                truncated: 0,
                logprobs: None,
                top_logprobs: None,
                prompt_logprobs: None,
            };
            assert_eq!(judge(&completion, &completion.text, answer), want, "{:?}", completion.text);
        }
    }
}
