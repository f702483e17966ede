//! Charts of a run as SVG text.

use super::{LossCurve, ModelRow, OperationRow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width and height of every chart, in SVG units: a phone shows them at 0.6 of that.
const SIZE: (u32, u32) = (560, 380);

/// Colours that stay apart for colour-blind readers (Okabe & Ito 2008), in the order of the series.
const PALETTE: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];

/// 11 pixels on a phone.
const FONT: (&str, i32) = ("sans-serif", 19);

/// Height of a line of text.
const LINE: i32 = FONT.1 + 1;

/// A chart on an SVG drawing.
type Chart<'a, X, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>;

type DrawResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Runs a drawing into SVG text. Drawing into memory fails only on an empty axis range, which the callers exclude.
fn svg(draw: impl FnOnce(&DrawingArea<SVGBackend, plotters::coord::Shift>) -> DrawResult<()>) -> String {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        let drawn = root.fill(&WHITE).map_err(Into::into).and_then(|()| draw(&root));
        if let Err(e) = drawn.and_then(|()| root.present().map_err(Into::into)) {
            return format!("<p>chart not drawn: {e}</p>");
        }
    }
    text
}

/// Least and greatest of the values, widened by `margin` of their span on both sides; never empty.
fn range(values: impl Iterator<Item = f64>, margin: f64) -> std::ops::Range<f64> {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return 0.0..1.0;
    }
    let pad = ((high - low) * margin).max(high.abs() * 1e-3).max(1e-9);
    low - pad..high + pad
}

fn axes<'a, X, Y>(
    root: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    x: X,
    y: Y,
    (x_label, y_label): (&str, &str),
) -> DrawResult<Chart<'a, X::CoordDescType, Y::CoordDescType>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    // 20 and 0.1, not 20.0 and 0.30000000000000004.
    let tick = |value: &f64| format!("{}", (value * 1e6).round() / 1e6);
    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .margin_right(32)
        .x_label_area_size(54)
        .y_label_area_size(80)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style(FONT)
        .axis_desc_style(FONT)
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&tick)
        .y_label_formatter(&tick)
        .x_desc(x_label)
        .y_desc(y_label)
        .draw()?;
    Ok(chart)
}

fn legend<'a, X: plotters::coord::ranged1d::Ranged, Y: plotters::coord::ranged1d::Ranged>(
    chart: &mut Chart<'a, X, Y>,
    position: SeriesLabelPosition,
) -> DrawResult<()> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(FONT)
        .draw()?;
    Ok(())
}

/// Training loss over steps, one line a student.
pub fn losses(curves: &[LossCurve]) -> String {
    let points = || curves.iter().flat_map(|c| c.points.iter());
    let x = range(points().map(|p| p.0 as f64), 0.0);
    let y = range(points().map(|p| p.1), 0.06);
    svg(|root| {
        let mut chart = axes(root, x, y, ("step", "loss per target token (nats)"))?;
        for (curve, color) in curves.iter().zip(PALETTE.into_iter().skip(1)) {
            let line =
                LineSeries::new(curve.points.iter().map(|&(step, loss)| (step as f64, loss)), color.stroke_width(2));
            chart
                .draw_series(line)?
                .label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        }
        legend(&mut chart, SeriesLabelPosition::UpperRight)
    })
}

/// Held-out perplexity against FLOPs per token, one point a model.
pub fn quality(models: &[ModelRow]) -> String {
    let x = range(models.iter().map(|m| m.flops_params_2n / 1e6), 0.15);
    let y = range(models.iter().map(|m| m.perplexity), 0.15);
    svg(|root| {
        let mut chart = axes(root, x, y, ("MFLOPs per token (2 x parameters)", "held-out perplexity"))?;
        for (model, color) in models.iter().zip(PALETTE) {
            let at = (model.flops_params_2n / 1e6, model.perplexity);
            chart
                .draw_series([Circle::new(at, 6, color.filled())])?
                .label(&model.name)
                .legend(move |(x, y)| Circle::new((x + 9, y), 5, color.filled()));
        }
        // The points stand at the ends of the axis: one x for the base, one for what was cut.
        legend(&mut chart, SeriesLabelPosition::UpperMiddle)
    })
}

/// Operations that the roofline names; more labels would cover each other.
const ROOFLINE_OPERATIONS: usize = 6;

/// Roofline (Williams et al. 2009): FLOP/s of the first operations over their FLOPs per byte, under the device's measured limits:
/// FLOP/s of bf16 and of F32, and bytes/s.
pub fn roofline(operations: &[OperationRow], peak_flops: [f64; 2], peak_bandwidth: f64) -> String {
    let points: Vec<(f64, f64, &str)> = operations
        .iter()
        .filter(|op| op.flops > 0 && op.bytes > 0 && op.seconds > 0.0)
        .take(ROOFLINE_OPERATIONS)
        .map(|op| (op.flops as f64 / op.bytes as f64, op.flops as f64 / op.seconds / 1e9, op.name.as_str()))
        .collect();
    let peaks = peak_flops.map(|peak| peak / 1e9);
    let high_y = peaks.into_iter().fold(0.0, f64::max) * 2.0;
    let low_x = points.iter().map(|p| p.0).fold(0.25, f64::min) / 2.0;
    let high_x = points.iter().map(|p| p.0).fold(64.0, f64::max) * 16.0;
    let low_y = points.iter().map(|p| p.1).fold(1.0, f64::min) / 2.0;
    svg(|root| {
        let labels = ("FLOPs per byte moved at least", "GFLOP/s");
        let mut chart = axes(root, (low_x..high_x).log_scale(), (low_y..high_y).log_scale(), labels)?;
        let steps = 60;
        for (peak, unit, side) in [(peaks[0], "bf16", VPos::Bottom), (peaks[1], "f32", VPos::Top)] {
            let roof = |x: f64| (x * peak_bandwidth / 1e9).min(peak).max(low_y);
            let line = (0..=steps).map(|i| low_x * (high_x / low_x).powf(f64::from(i) / f64::from(steps)));
            chart.draw_series(LineSeries::new(line.map(|x| (x, roof(x))), BLACK.mix(0.6).stroke_width(2)))?;
            let style = FONT.into_text_style(root).pos(Pos::new(HPos::Right, side));
            chart.draw_series([Text::new(unit, (high_x, peak), style)])?;
        }
        let pixels: Vec<(i32, i32)> = points.iter().map(|&(x, y, _)| chart.backend_coord(&(x, y))).collect();
        for ((x, y, name), shift) in points.into_iter().zip(label_shifts(&pixels)) {
            let color = PALETTE[usize::from(name.contains("matmul"))];
            chart.draw_series([EmptyElement::at((x, y))
                + Circle::new((0, 0), 4, color.filled())
                + Text::new(name.to_string(), (7, shift - LINE / 2), FONT.into_font())])?;
        }
        Ok(())
    })
}

/// How far down to move the label right of each point so that none covers another: in pixels, the highest point's label stays.
fn label_shifts(points: &[(i32, i32)]) -> Vec<i32> {
    /// The longest name of an operation.
    const WIDTH: i32 = 180;
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&i| points[i].1);
    let mut placed: Vec<(i32, i32)> = Vec::new();
    let mut shifts = vec![0; points.len()];
    for i in order {
        let (x, mut y) = points[i];
        for &(other_x, other_y) in &placed {
            if (x - other_x).abs() < WIDTH && y < other_y + LINE {
                y = other_y + LINE;
            }
        }
        placed.push((x, y));
        shifts[i] = y - points[i].1;
    }
    shifts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_neighbours_stand_below_each_other() {
        let shifts = label_shifts(&[(100, 50), (110, 52), (105, 49), (400, 50)]);
        assert_eq!(
            shifts,
            [LINE - 1, 2 * LINE - 3, 0, 0],
            "in order of height; a point far to the right keeps its place"
        );
    }
}
