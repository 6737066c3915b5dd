//! What is sent of a desktop that changes, and do users see what was drawn?

use anyhow::{Context, Result, ensure};

use crate::support::c::{run_c_sanitized, run_c_with};

crate::tests! {
    Source:
        little_is_sent_of_a_desktop_that_scrolls of "0145",
        users_see_what_was_drawn of "0145",
        text_that_changes_is_sent_as_png of "0147",
        video_is_sent_as_jpeg_only_while_processors_are_short of "0149",
        users_are_not_sent_kinds_of_images_that_they_do_not_support of "0149";
    Minutes:
        the_sanitizers_find_nothing_where_desktops_move of "0145";
}

/// What percentage of the pixels that were drawn is sent as images.
fn sent(variant: &str, scene: &str) -> Result<u32> {
    let said = run_c_with("display_moves", variant, &["-lcairo"], &[scene, "30", "1"])?;
    said.trim().strip_suffix(" %").and_then(|percent| percent.parse().ok()).context(said)
}

fn little_is_sent_of_a_desktop_that_scrolls() -> Result<()> {
    // Of what is drawn with each frame, 4 % is new.
    for scene in ["scroll", "torn"] {
        let [patched, stock] = [sent("patched", scene)?, sent("stock", scene)?];
        ensure!(patched <= 10 && stock >= 30, "{scene}: {patched} and, with stock, {stock} %");
    }
    Ok(())
}

fn users_see_what_was_drawn() -> Result<()> {
    for seed in ["1", "2", "13", "18"] {
        let said = run_c_with("display_moves", "patched", &["-lcairo"], &["random", "300", seed])?;
        ensure!(said.ends_with(" %\n"), "seed {seed}: {said}");
    }
    Ok(())
}

fn the_sanitizers_find_nothing_where_desktops_move() -> Result<()> {
    for scene in ["scroll", "torn", "random"] {
        let said = run_c_sanitized("display_moves", "address,undefined", None, &[scene, "100", "5"])?;
        ensure!(said.ends_with(" %\n"), "{scene}: {said}");
    }
    Ok(())
}

/// How many images of these kinds are sent.
#[derive(Debug, PartialEq)]
struct Kinds {
    png: u32,
    jpeg: u32,
    webp: u32,
}

/// What is sent while a scene changes, and after that, while it stands still.
fn kinds(variant: &str, scene: &str, processors: &str, supported: &[&str]) -> Result<[Kinds; 2]> {
    let said = run_c_with("display_kinds", variant, &[], &[&[scene, processors], supported].concat())?;
    let of = |when: &str| -> Option<Kinds> {
        let line = said.lines().find_map(|line| line.strip_prefix(when))?;
        let mut counts = line.split(' ').filter_map(|word| word.parse().ok());
        Some(Kinds { png: counts.next()?, jpeg: counts.next()?, webp: counts.next()? })
    };
    Ok([of("moving:").with_context(|| said.clone())?, of("still:").with_context(|| said.clone())?])
}

const ALL: [&str; 3] = ["image/png", "image/jpeg", "image/webp"];

fn text_that_changes_is_sent_as_png() -> Result<()> {
    let [moving, _] = kinds("patched", "text", "idle", &ALL)?;
    ensure!(moving.png >= 20 && moving.jpeg + moving.webp == 0, "{moving:?}");
    // Those who do not know WebP get JPEG, which takes less time than PNG.
    let [moving, _] = kinds("patched", "text", "idle", &ALL[..2])?;
    ensure!(moving.png == 0 && moving.jpeg >= 20, "without WebP: {moving:?}");
    let [moving, _] = kinds("stock", "text", "idle", &ALL)?;
    ensure!(moving.png == 0 && moving.webp >= 20, "stock: {moving:?}");
    Ok(())
}

fn video_is_sent_as_jpeg_only_while_processors_are_short() -> Result<()> {
    let [moving, still] = kinds("patched", "video", "short", &ALL)?;
    ensure!(moving.jpeg >= 15 && moving.webp <= 5, "while processors are short: {moving:?}");
    ensure!(still.webp > 0 && still.jpeg == 0, "sent again: {still:?}");
    let [moving, still] = kinds("patched", "video", "idle", &ALL)?;
    ensure!(moving.jpeg == 0 && moving.webp >= 15, "otherwise: {moving:?}");
    ensure!(still == Kinds { png: 0, jpeg: 0, webp: 0 }, "sent again: {still:?}");
    let [moving, _] = kinds("stock", "video", "short", &ALL)?;
    ensure!(moving.jpeg == 0, "stock: {moving:?}");
    Ok(())
}

fn users_are_not_sent_kinds_of_images_that_they_do_not_support() -> Result<()> {
    for supported in [&ALL[..1], &["image/png", "image/webp"]] {
        let [moving, still] = kinds("patched", "video", "short", supported)?;
        ensure!(moving.jpeg == 0 && still.jpeg == 0, "{supported:?}: {moving:?}, {still:?}");
        ensure!(moving.png + moving.webp >= 15, "{supported:?}: {moving:?}");
        ensure!(supported.len() == 2 || moving.webp == 0, "{supported:?}: {moving:?}");
    }
    let [moving, _] = kinds("stock", "video", "short", &ALL[..1])?;
    ensure!(moving.jpeg >= 15, "stock: {moving:?}");
    Ok(())
}
