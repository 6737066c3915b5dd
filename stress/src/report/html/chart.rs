//! How is a chart drawn? As SVG: lines over one axis of numbers, with round numbers at the grid, and as a table for those who
//! do not see it.

use maud::{Markup, html};

/// What the axes count.
#[derive(Clone, Copy, PartialEq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds, on a logarithmic scale.
    LogMilliseconds,
    /// Bytes.
    Bytes,
    /// A number, or a share of one.
    Number,
    /// Percent.
    Percent,
}

/// A line.
pub struct Line {
    /// What it is called.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
pub struct Chart {
    /// Its heading.
    pub heading: &'static str,
    /// What the axes are.
    pub caption: &'static str,
    /// The horizontal axis.
    pub x: Unit,
    /// The vertical axis. It begins at 0.
    pub y: Unit,
    /// The lines. The number of a line is that of its style.
    pub lines: Vec<Line>,
}

/// The size of a chart, in pixels.
const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;

/// The room for the numbers at the axes.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 28.0;

/// How many rows the table of a chart may have.
const ROWS: usize = 12;

impl Unit {
    /// A number of this unit, for people.
    pub fn show(self, value: f64) -> String {
        let number = |value: f64| match value {
            value if value.fract() == 0.0 || value >= 100.0 => format!("{value:.0}"),
            value if value >= 1.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        };
        match self {
            Self::Seconds if value >= 120.0 => format!("{} min", number(value / 60.0)),
            Self::Seconds => format!("{} s", number(value)),
            Self::LogMilliseconds if value >= 1000.0 => format!("{} s", number(value / 1000.0)),
            Self::LogMilliseconds => format!("{} ms", number(value)),
            Self::Bytes if value >= f64::from(1 << 30) => {
                format!("{} GiB", number(value / f64::from(1 << 30)))
            }
            Self::Bytes => format!("{} MiB", number(value / f64::from(1 << 20))),
            Self::Number => number(value),
            Self::Percent => format!("{} %", number(value)),
        }
    }
}

/// An axis: which numbers it reaches from and to, and where the lines of the grid are.
struct Axis {
    unit: Unit,
    from: f64,
    to: f64,
    grid: Vec<f64>,
}

impl Axis {
    fn new(unit: Unit, values: impl Iterator<Item = f64> + Clone) -> Self {
        let most = values.clone().fold(0.0, f64::max);
        match unit {
            Unit::LogMilliseconds => {
                let least = values.fold(most.max(1.0), f64::min).max(0.1);
                let (from, to) = (least.log10().floor(), most.max(least * 1.01).log10().ceil());
                let grid = (from as i32..=to as i32).map(|power| 10_f64.powi(power)).collect();
                Self { unit, from: 10_f64.powf(from), to: 10_f64.powf(to), grid }
            }
            Unit::Percent => Self { unit, from: 0.0, to: 100.0, grid: vec![0.0, 25.0, 50.0, 75.0, 95.0] },
            _ => {
                let scale = match unit {
                    Unit::Bytes if most >= f64::from(1 << 30) => f64::from(1 << 30),
                    Unit::Bytes => f64::from(1 << 20),
                    Unit::Seconds if most >= 120.0 => 60.0,
                    _ => 1.0,
                };
                let step = round_step(most / scale / 4.0) * scale;
                let steps = (most / step).ceil().max(1.0) as u32;
                let grid = (0..=steps).map(|n| f64::from(n) * step).collect::<Vec<_>>();
                let to = if unit == Unit::Seconds { most.max(step) } else { f64::from(steps) * step };
                Self { unit, from: 0.0, to, grid }
            }
        }
    }

    /// Where a value is, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        match self.unit {
            Unit::LogMilliseconds => (value.max(self.from) / self.from).ln() / (self.to / self.from).ln(),
            _ => (value - self.from) / (self.to - self.from),
        }
    }
}

/// The next of 1, 2 and 5 times a power of ten.
fn round_step(least: f64) -> f64 {
    if least <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(least.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= least * 0.999);
    factor.unwrap_or(10.0) * power
}

impl Chart {
    /// The chart. None where there is nothing to draw.
    pub fn draw(&self) -> Option<Markup> {
        let points = || self.lines.iter().flat_map(|line| line.points.iter());
        if points().count() < 2 {
            return None;
        }
        let (x, y) = (
            Axis::new(self.x, points().map(|point| point.0)),
            Axis::new(self.y, points().map(|point| point.1)),
        );
        let at = |(px, py): (f64, f64)| {
            let left = LEFT + x.place(px) * (WIDTH - LEFT - RIGHT);
            let top = HEIGHT - BOTTOM - y.place(py) * (HEIGHT - TOP - BOTTOM);
            (left, top)
        };
        let path = |line: &Line| {
            let mut path = String::new();
            for (index, &point) in line.points.iter().enumerate() {
                let (left, top) = at(point);
                path.push_str(&format!("{}{left:.1} {top:.1}", if index == 0 { "M" } else { "L" }));
            }
            path
        };
        let label = format!("{}. {}. {}", self.heading, self.caption, self.summary());
        Some(html! {
            figure {
                figcaption { h3 { (self.heading) } p { (self.caption) } }
                svg viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(label) {
                    @for &value in y.grid.iter().filter(|value| **value <= y.to * 1.0001) {
                        @let top = at((x.from, value)).1;
                        line.grid x1=(LEFT) x2=(WIDTH - RIGHT) y1=(top) y2=(top) {}
                        text x=(LEFT - 8.0) y=(top + 4.0) text-anchor="end" { (y.unit.show(value)) }
                    }
                    @for &value in x.grid.iter().filter(|value| **value <= x.to * 1.0001) {
                        @let left = at((value, 0.0)).0;
                        line.grid x1=(left) x2=(left) y1=(TOP) y2=(HEIGHT - BOTTOM) {}
                        text x=(left) y=(HEIGHT - 8.0) text-anchor=(if left > WIDTH - 50.0 { "end" } else { "middle" }) { (x.unit.show(value)) }
                    }
                    @for (index, line) in self.lines.iter().enumerate() {
                        path class=(format!("line s{}", index % 4)) d=(path(line)) { title { (line.name) } }
                    }
                }
                @if self.lines.len() > 1 {
                    ul.legend {
                        @for (index, line) in self.lines.iter().enumerate() {
                            li {
                                svg viewBox="0 0 32 10" aria-hidden="true" { path class=(format!("line s{}", index % 4)) d="M0 5L32 5" {} }
                                (line.name)
                            }
                        }
                    }
                }
                details {
                    summary { "Numbers" }
                    (self.table())
                }
            }
        })
    }

    /// Where each line ends and what its maximum is, in words.
    fn summary(&self) -> String {
        let line = |line: &Line| {
            let most = line.points.iter().map(|point| point.1).fold(0.0, f64::max);
            format!("{}: at most {}", line.name, self.y.show(most))
        };
        self.lines.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    fn table(&self) -> Markup {
        let rows = |line: &Line| {
            let step = line.points.len().div_ceil(ROWS).max(1);
            let mut rows = line.points.iter().step_by(step).copied().collect::<Vec<_>>();
            rows.extend(line.points.last().copied().filter(|last| rows.last() != Some(last)));
            rows
        };
        html! {
            div.scroll tabindex="0" role="region" aria-label=(format!("Numbers of {}", self.heading)) {
                @for line in &self.lines {
                    table {
                        caption { (line.name) }
                        tbody { @for (x, y) in rows(line) { tr { th scope="row" { (self.x.show(x)) } td { (self.y.show(y)) } } } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_has_round_numbers_that_reach_beyond_the_values() {
        for (most, grid) in [
            (300.0, vec![0.0, 100.0, 200.0, 300.0]),
            (7.0, vec![0.0, 2.0, 4.0, 6.0, 8.0]),
            (0.0, vec![0.0, 1.0]),
        ] {
            let axis = Axis::new(Unit::Number, [0.0, most].into_iter());
            assert_eq!(axis.grid, grid);
        }
        let axis = Axis::new(Unit::LogMilliseconds, [3.0, 250.0].into_iter());
        assert_eq!(axis.grid, [1.0, 10.0, 100.0, 1000.0]);
        assert!((axis.place(10.0) - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_name_cannot_become_a_part_of_the_page() {
        let line = Line { name: "<script>".into(), points: vec![(0.0, 0.0), (1.0, 2.0)] };
        let chart =
            Chart { heading: "h", caption: "c", x: Unit::Seconds, y: Unit::Number, lines: vec![line] };
        let page = chart.draw().unwrap().into_string();
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script"), "{page}");
    }

    #[test]
    fn a_single_point_is_not_drawn() {
        let line = Line { name: "a".into(), points: vec![(0.0, 0.0)] };
        assert!(
            Chart { heading: "h", caption: "c", x: Unit::Seconds, y: Unit::Number, lines: vec![line] }
                .draw()
                .is_none()
        );
    }
}
