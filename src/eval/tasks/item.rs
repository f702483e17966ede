//! Rows of a task as prompts, choices and right answers.

use super::header::{Header, Kind, Task};
use crate::data;
use crate::error::{Error, Result};
use minijinja::{Environment, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};
use std::collections::BTreeMap;
use std::path::Path;

/// A row, rendered. Which fields are used depends on the kind of the task.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// How errors name the row (`line 7`).
    pub place: String,
    /// Text before everything.
    pub description: String,
    /// One context per choice; they are equal in a multiple-choice task. One in a generative task.
    pub contexts: Vec<String>,
    /// One continuation per choice, without the delimiter before it.
    pub choices: Vec<String>,
    /// Which choices are right.
    pub gold: Vec<bool>,
    /// The right answer's text, as in an example; what is extracted from it is compared in a generative task.
    pub answer: String,
    /// What examples must share with this row.
    pub(super) group: Option<Json>,
}

impl Item {
    /// The item as an example: context, delimiter, right answer.
    fn example(&self, header: &Header) -> String {
        let right = self.gold.iter().position(|&gold| gold).unwrap_or(0);
        format!("{}{}{}", self.contexts[right], header.target_delimiter, self.answer)
    }
}

/// The rows of a task, and the examples that precede each.
pub struct Items {
    /// The rows that are asked.
    pub items: Vec<Item>,
    /// The first rows of each group of the examples' file, one more than are shown: a row is no example of itself.
    examples: BTreeMap<String, Vec<Item>>,
    num_fewshot: usize,
}

impl Items {
    /// Reads at most `limit` rows, and `num_fewshot` examples a group.
    ///
    /// Errors name the file and line of a row that lacks a field, has no right answer or an empty choice, and the file that has
    /// too few examples.
    pub fn load(task: &Task, num_fewshot: usize, limit: Option<usize>) -> Result<Items> {
        let renderer = Renderer::new(&task.header, &task.path)?;
        let mut items = Vec::new();
        let mut rows = data::objects(&task.data, false)?;
        while items.len() < limit.unwrap_or(usize::MAX)
            && let Some(row) = rows.next()
        {
            let (line, fields) = row?;
            items.push(renderer.item(&task.data, rows.place(line), &fields)?);
        }
        if items.is_empty() {
            return Err(Error::format(&task.data, "file", "at least one row", "none"));
        }
        let mut examples: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        let file = task.fewshot.as_ref().unwrap_or(&task.data);
        if num_fewshot > 0 {
            let mut rows = data::objects(file, false)?;
            while let Some(row) = rows.next() {
                let (line, fields) = row?;
                let group = examples.entry(group_key(renderer.group(&fields))).or_default();
                if group.len() <= num_fewshot {
                    group.push(renderer.item(file, rows.place(line), &fields)?);
                }
            }
        }
        let items = Items { items, examples, num_fewshot };
        for item in &items.items {
            let found = items.examples_of(item).count();
            if found < num_fewshot {
                let place = format!("examples for {} of {}", item.place, task.data.display());
                return Err(Error::format(file, place, format!("{num_fewshot} other rows"), found.to_string()));
            }
        }
        Ok(items)
    }

    /// The first examples in the order of their file that are not the row itself: always the same ones.
    fn examples_of<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = &'a Item> {
        let group = self.examples.get(&group_key(item.group.clone()));
        let others =
            move |e: &&Item| e.contexts != item.contexts || e.choices != item.choices || e.answer != item.answer;
        group.into_iter().flatten().filter(others).take(self.num_fewshot)
    }

    /// What stands before the question: description and examples.
    pub fn preamble(&self, header: &Header, item: &Item) -> String {
        let mut text = item.description.clone();
        for example in self.examples_of(item) {
            text.push_str(&example.example(header));
            text.push_str(&header.fewshot_delimiter);
        }
        text
    }
}

fn group_key(group: Option<Json>) -> String {
    group.map(|g| g.to_string()).unwrap_or_default()
}

/// Templates and expressions of a header.
struct Renderer<'a> {
    header: &'a Header,
    env: Environment<'a>,
}

/// Steps that a template may take for one row.
const FUEL: u64 = 1_000_000;

impl<'a> Renderer<'a> {
    fn new(header: &'a Header, path: &Path) -> Result<Renderer<'a>> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        env.set_fuel(Some(FUEL));
        let syntax = minijinja::syntax::SyntaxConfig::builder().keep_trailing_newline(true).build();
        env.set_syntax(syntax.map_err(|e| Error::format(path, "task header", "Jinja syntax", e.to_string()))?);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("strip_brackets", strip_brackets);
        let templates = [
            ("description", &header.description),
            ("prompt", &header.prompt),
            ("continuation", &header.continuation),
            ("answer", &header.answer),
        ];
        for (key, template) in templates {
            env.add_template(key, template).map_err(|e| Error::format(path, key, "a Jinja template", e.to_string()))?;
        }
        Ok(Renderer { header, env })
    }

    fn group(&self, fields: &Map<String, Json>) -> Option<Json> {
        fields.get(self.header.fewshot_group.as_ref()?).cloned()
    }

    fn item(&self, path: &Path, place: String, fields: &Map<String, Json>) -> Result<Item> {
        let row = Row { env: &self.env, fields: Value::from(minijinja::value::Serde(fields)), path, place: &place };
        let header = self.header;
        let mut item = Item {
            description: row.render("description")?,
            contexts: Vec::new(),
            choices: Vec::new(),
            gold: Vec::new(),
            answer: String::new(),
            group: self.group(fields),
            place: place.clone(),
        };
        match header.kind {
            Kind::Generate => {
                item.contexts = vec![row.render("prompt")?];
                item.answer = row.render("answer")?;
                return Ok(item);
            }
            Kind::MultipleChoice => {
                item.choices = row.texts("choices", &header.choices)?;
                item.contexts = vec![row.render("prompt")?; item.choices.len()];
            }
            Kind::Partial => {
                item.contexts = row.texts("contexts", &header.contexts)?;
                item.choices = vec![row.render("continuation")?; item.contexts.len()];
            }
        }
        if item.choices.len() < 2 {
            return Err(row.error("choices", "two choices or more", item.choices.len().to_string()));
        }
        if item.choices.iter().any(|choice| choice.trim().is_empty()) {
            return Err(row.error("choices", "choices with text", "an empty one".to_string()));
        }
        let labels = if header.labels.is_empty() { None } else { Some(row.texts("labels", &header.labels)?) };
        item.gold = row.gold(&header.gold, &item.choices, labels.as_deref())?;
        let right = item.gold.iter().position(|&gold| gold);
        let right = right.ok_or_else(|| row.error("gold", "a right choice", "none".to_string()))?;
        item.answer = item.choices[right].clone();
        Ok(item)
    }
}

/// One row under the templates.
struct Row<'a> {
    env: &'a Environment<'a>,
    fields: Value,
    path: &'a Path,
    place: &'a str,
}

impl Row<'_> {
    fn error(&self, key: &str, expected: &str, found: String) -> Error {
        Error::format(self.path, format!("{}, {key}", self.place), expected, found)
    }

    fn unusable(&self, key: &str) -> impl Fn(minijinja::Error) -> Error {
        move |e| self.error(key, "the fields that this task's header uses", e.to_string())
    }

    fn render(&self, key: &str) -> Result<String> {
        self.env.get_template(key).and_then(|template| template.render(&self.fields)).map_err(self.unusable(key))
    }

    fn value(&self, key: &str, expression: &str) -> Result<Value> {
        let value = self.env.compile_expression(expression).and_then(|e| e.eval(&self.fields));
        value.map_err(self.unusable(key))
    }

    fn texts(&self, key: &str, expression: &str) -> Result<Vec<String>> {
        let value = self.value(key, expression)?;
        if value.is_undefined() {
            let expected = "the fields that this task's header uses";
            return Err(self.error(key, expected, format!("no value for {expression}")));
        }
        let list = value.try_iter().map_err(self.unusable(key))?;
        list.map(|text| match text.as_str() {
            Some(text) => Ok(text.to_string()),
            None if text.is_number() => Ok(text.to_string()),
            None => Err(self.error(key, "a list of texts", value.to_string())),
        })
        .collect()
    }

    /// Which choices are right: `gold` is a list of 0 and 1, a label, a choice's text or an index.
    fn gold(&self, expression: &str, choices: &[String], labels: Option<&[String]>) -> Result<Vec<bool>> {
        let value = self.value("gold", expression)?;
        if value.kind() == minijinja::value::ValueKind::Seq || value.kind() == minijinja::value::ValueKind::Iterable {
            let mask: Vec<bool> = value.try_iter().map_err(self.unusable("gold"))?.map(|v| v.is_true()).collect();
            if mask.len() != choices.len() {
                return Err(self.error("gold", &format!("{} entries", choices.len()), mask.len().to_string()));
            }
            return Ok(mask);
        }
        let text = value.to_string();
        let index = match labels {
            Some(labels) => labels.iter().position(|label| *label == text),
            None => text
                .parse()
                .ok()
                .filter(|_| value.is_number())
                .or_else(|| choices.iter().position(|choice| *choice == text))
                .or_else(|| text.parse().ok()),
        };
        match index.filter(|&index| index < choices.len()) {
            Some(right) => Ok((0..choices.len()).map(|index| index == right).collect()),
            None => {
                let names = labels.map_or_else(|| format!("0 to {}", choices.len() - 1), |l| l.join(", "));
                Err(self.error("gold", &format!("one of {names}"), text))
            }
        }
    }
}

/// The customary clean-up of HellaSwag's texts: `[header]`-like tags go, `[title]` becomes a full stop, double blanks shrink.
fn strip_brackets(text: &str) -> String {
    let text = text.trim().replace(" [title]", ". ");
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while let Some(open) = rest.find('[') {
        let Some(close) = rest[open..].find(']') else { break };
        out.push_str(&rest[..open]);
        rest = &rest[open + close + 1..];
    }
    out.push_str(rest);
    out.replace("  ", " ")
}
