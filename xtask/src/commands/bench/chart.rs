//! The chart: for each operation, each design's time as a multiple of the time with a pthread key.

use std::fmt::Write;

use super::report::{ROWS, Report};

/// Each design: its name, its title, its colours on white and on black, and the radius of its circles.
const DESIGNS: [(&str, &str, &str, &str, f64); 5] = [
    ("mutex_array", "mutex array", "#c2410c", "#fb923c", 5.0),
    ("slots16", "16 lock slots", "#7e22ce", "#c084fc", 5.0),
    ("pthread_high", "pthread from 32 on", "#6b7280", "#9ca3af", 5.0),
    ("thread", "__thread, the floor", "#0e7490", "#22d3ee", 5.0),
    ("tls_rs", "tls-rs", "#15803d", "#4ade80", 7.0),
];

const WIDTH: f64 = 860.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 70.0;
const ROW: f64 = 30.0;

/// The lowest and the highest ratio on the axis, which is logarithmic.
const LEAST: f64 = 0.1;
const MOST: f64 = 50.0;
const TICKS: [f64; 9] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0];

/// Draws the report as SVG, for white and for black backgrounds.
pub fn draw(report: &Report) -> String {
    let bottom = TOP + ROWS.len() as f64 * ROW;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" font-family=\"sans-serif\" \
         font-size=\"14\">\n<title>Time as a multiple of that of a pthread key below 32</title>\n<style>\n\
         text {{ fill: #24292f }} .line {{ stroke: #d0d7de }} .one {{ stroke: #24292f; stroke-width: 2 }}\n",
        bottom + 60.0
    );
    let mut dark = "text { fill: #e6edf3 } .line { stroke: #30363d } .one { stroke: #e6edf3 }".to_owned();
    for (design, _, on_white, on_black, _) in DESIGNS {
        let _ = writeln!(svg, ".{design} {{ fill: {on_white}; stroke: {on_white} }}");
        let _ = write!(dark, " .{design} {{ fill: {on_black}; stroke: {on_black} }}");
    }
    let _ = writeln!(svg, "@media (prefers-color-scheme: dark) {{ {dark} }}\n</style>");

    let mut x = RIGHT;
    for (design, title, ..) in DESIGNS.iter().rev() {
        let _ = writeln!(svg, "<circle class=\"{design}\" cx=\"{x}\" cy=\"20\" r=\"5\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"25\">{title}</text>", x + 12.0);
        x += 40.0 + title.len() as f64 * 7.3;
    }
    for tick in TICKS {
        let (x, class) = (across(tick), if tick == 1.0 { "one" } else { "line" });
        let _ = writeln!(
            svg,
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{}\" y2=\"{bottom}\"/>\n\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{tick}×</text>",
            TOP - 15.0,
            bottom + 20.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">time divided by that of a pthread key below 32 \
         (guac_rwlock: by stock's): median and worst case (line); less is better</text>",
        WIDTH / 2.0,
        bottom + 45.0
    );
    for (index, row) in ROWS.iter().enumerate() {
        let y = TOP + (index as f64 + 0.5) * ROW;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 15.0,
            y + 5.0,
            row.title.replace('&', "&amp;")
        );
        for (design, _, _, _, radius) in DESIGNS {
            let Some((middle, worst)) = report.range(row, design) else { continue };
            let (from, to) = (across(middle.median), across(worst.median));
            let _ = writeln!(
                svg,
                "<line class=\"{design}\" stroke-width=\"3\" x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y}\" y2=\"{y}\"/>\n\
                 <circle class=\"{design}\" cx=\"{from:.1}\" cy=\"{y}\" r=\"{radius}\"/>"
            );
        }
    }
    svg + "</svg>\n"
}

/// The x coordinate of a ratio.
fn across(ratio: f64) -> f64 {
    let share = (ratio.clamp(LEAST, MOST) / LEAST).ln() / (MOST / LEAST).ln();
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_spans_the_picture() {
        assert!((across(LEAST) - LEFT).abs() < 0.01 && (across(MOST) - (WIDTH - RIGHT)).abs() < 0.01);
        assert!(across(0.5) < across(1.0) && across(1.0) < across(2.0));
        assert_eq!((across(0.0), across(1e9)), (across(LEAST), across(MOST)));
    }
}
