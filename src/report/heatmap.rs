//! A heat map as SVG: one row a setting, one column a block, the chosen cells framed.

use std::fmt::Write;

/// A table of numbers to be shown as colours, lower being better.
#[derive(Clone, Debug, Default)]
pub struct HeatMap {
    /// Heading.
    pub title: String,
    /// What the columns count; they are numbered from 0.
    pub x_label: String,
    /// Rows from top to bottom.
    pub rows: Vec<HeatRow>,
}

/// One row of a [`HeatMap`].
#[derive(Clone, Debug, Default)]
pub struct HeatRow {
    /// Text at the left.
    pub label: String,
    /// One value a column; `None` leaves the cell blank.
    pub values: Vec<Option<f64>>,
    /// Columns to frame.
    pub marked: Vec<usize>,
}

/// What a map says of its frames.
pub const LEGEND: &str = "(framed: the best)";
/// Pixels of a cell.
const CELL: usize = 26;
const LEFT: usize = 76;
const TOP: usize = 46;

/// Dark (low) to light (high), equal steps to the eye and in grey; ends and quarters of a blue-green-yellow ramp.
const RAMP: [[f64; 3]; 5] =
    [[52.0, 18.0, 84.0], [52.0, 84.0, 142.0], [32.0, 144.0, 140.0], [104.0, 202.0, 98.0], [250.0, 232.0, 60.0]];

fn colour(share: f64) -> String {
    let at = share.clamp(0.0, 1.0) * (RAMP.len() - 1) as f64;
    let low = (at as usize).min(RAMP.len() - 2);
    let mix = |c: usize| RAMP[low][c] + (RAMP[low + 1][c] - RAMP[low][c]) * (at - low as f64);
    format!("#{:02x}{:02x}{:02x}", mix(0).round() as u8, mix(1).round() as u8, mix(2).round() as u8)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Four significant digits.
fn short(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    if (-4..6).contains(&digits) { format!("{value:.*}", (3 - digits).max(0) as usize) } else { format!("{value:.3e}") }
}

impl HeatMap {
    /// The map as an SVG document, with a colour scale; each cell's number shows when pointed at.
    pub fn svg(&self) -> String {
        let columns = self.rows.iter().map(|row| row.values.len()).max().unwrap_or(0);
        let bottom = TOP + self.rows.len() * CELL;
        let (width, height) = ((LEFT + columns * CELL + 16).max(420), bottom + 96);
        let values = || self.rows.iter().flat_map(|row| row.values.iter().flatten().copied());
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(f64::NEG_INFINITY, f64::max);
        let share = |value: f64| if high > low { (value - low) / (high - low) } else { 0.0 };
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" style=\"max-width:100%;height:auto\" font-family=\"system-ui, sans-serif\" \
             font-size=\"12\" fill=\"#222\" role=\"img\" aria-label=\"{title}\">\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
             <text x=\"{LEFT}\" y=\"26\" font-size=\"15\" font-weight=\"600\">{title}</text>\n",
            title = escape(&self.title),
        );
        // Writing to a String cannot fail: the results below carry nothing.
        for (r, row) in self.rows.iter().enumerate() {
            let y = TOP + r * CELL;
            let label = escape(&row.label);
            let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{label}</text>", LEFT - 8, y + 17);
            for (c, value) in row.values.iter().enumerate() {
                let Some(value) = *value else { continue };
                let (x, fill, number) = (LEFT + c * CELL, colour(share(value)), short(value));
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{fill}\" stroke=\"#fff\">\
                     <title>{label}, {c}: {number}</title></rect>"
                );
            }
        }
        for (r, row) in self.rows.iter().enumerate() {
            for c in &row.marked {
                let (x, y) = (LEFT + c * CELL + 2, TOP + r * CELL + 2);
                let _ = writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{y}\" width=\"{s}\" height=\"{s}\" fill=\"none\" stroke=\"#e5004f\" \
                     stroke-width=\"3\" pointer-events=\"none\"/>",
                    s = CELL - 4
                );
            }
        }
        // About 40 numbers fit under the columns before they touch.
        for c in (0..columns).step_by(1 + columns / 40) {
            let x = LEFT + c * CELL + CELL / 2;
            let _ = writeln!(
                svg,
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\" font-size=\"11\">{c}</text>",
                bottom + 15
            );
        }
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\">{} {LEGEND}</text>", bottom + 35, escape(&self.x_label));
        if low <= high {
            self.scale(&mut svg, bottom + 48, low, high);
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The colour scale with the numbers at its ends.
    fn scale(&self, svg: &mut String, y: usize, low: f64, high: f64) {
        for i in 0..64 {
            let (x, fill) = (LEFT + i * 4, colour(i as f64 / 63.0));
            let _ = writeln!(svg, "<rect x=\"{x}\" y=\"{y}\" width=\"4\" height=\"12\" fill=\"{fill}\"/>");
        }
        let (end, text) = (LEFT + 256, y + 27);
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{text}\">{}</text>", short(low));
        let _ = writeln!(svg, "<text x=\"{end}\" y=\"{text}\" text-anchor=\"end\">{}</text>", short(high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_cell_and_every_mark_a_frame() {
        let row = |label: &str, marked| HeatRow {
            label: label.into(),
            values: vec![Some(0.5), None, Some(0.25), Some(1.0)],
            marked,
        };
        let map = HeatMap {
            title: "a < b & \"c\"".into(),
            x_label: "block".into(),
            rows: vec![row("n = 2", vec![2]), row("n = 4", vec![0, 2])],
        };
        let svg = map.svg();
        assert_eq!(svg.matches("<title>").count(), 6);
        assert_eq!(svg.matches("#e5004f").count(), 3);
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot;"));
        assert!(svg.contains("n = 2, 2: 0.2500"));
        assert!(svg.contains(&colour(0.0)) && svg.contains(&colour(1.0)));
    }

    #[test]
    fn equal_values_and_empty_maps_are_drawn() {
        let flat =
            HeatMap { rows: vec![HeatRow { values: vec![Some(0.0); 3], ..HeatRow::default() }], ..HeatMap::default() };
        assert!(!flat.svg().contains("NaN"));
        assert!(HeatMap::default().svg().ends_with("</svg>\n"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [short(0.0), short(0.1234567), short(23.7477), short(123456.7), short(1.5e9)],
            ["0.000", "0.1235", "23.75", "123457", "1.500e9"]
        );
    }
}
