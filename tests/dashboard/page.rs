//! The dashboard, in a real browser against a real server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::browser::{Browser, ENTER, TAB};
use crate::support::farm::Farm;
use crate::support::store::TestStore;
use serde_json::{Value, json};
use worker_heartbeat::fleet::{Beat, Registration, Stop, StoredEnding};
use worker_heartbeat::{
    Activity, Death, Ending, HealthEndpoint, HeartbeatStore, Registry, State, StopCause,
    Thresholds, WorkerHeartbeat,
};

/// The row of the worker with this id, as an expression.
pub fn row(id: &str) -> String {
    let id = json!(id);
    format!(
        "[...document.querySelectorAll('.worker')].find(w => w.querySelector('.c-id').textContent === {id})"
    )
}

fn cell(browser: &Browser, id: &str, selector: &str) -> String {
    let text = browser.eval(&format!(
        "(r => r && r.querySelector({selector:?}).textContent)({})",
        row(id)
    ));
    text.as_str().unwrap_or_default().to_owned()
}

pub fn ids(browser: &Browser) -> Vec<String> {
    let ids =
        browser.eval("[...document.querySelectorAll('.worker .c-id')].map(e => e.textContent)");
    serde_json::from_value(ids).unwrap()
}

/// Nothing was blocked, no error occurred, and no other host was contacted.
#[track_caller]
pub fn assert_calm(browser: &Browser, origin: &str) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let asked = browser.eval("performance.getEntriesByType('resource').map(entry => entry.name)");
    for name in asked.as_array().unwrap() {
        let name = name.as_str().unwrap();
        assert!(
            name.starts_with(origin) || name.starts_with("data:"),
            "it contacted {name}"
        );
    }
}

#[test]
fn each_worker_is_shown_with_its_task_its_ages_and_why_it_died() {
    // First, because it may have to wait for the other tests' browser.
    let browser = Browser::start();
    let farm = Farm::new();
    let hb = farm.worker("crawler").id("crawler-1");
    let hb = hb.metadata("version", "1.4.2").start().unwrap();
    hb.update_task("run-17", "reading example.com", Activity::Processing);
    let task = hb.begin_task("run-17", "reading example.com");
    task.progress(3, 10);
    let mailer = farm.worker("mailer").id("mailer-1").start().unwrap();
    mailer.mark_idle();
    let broken = farm.worker("importer").id("importer-1").start().unwrap();
    broken.beat();
    broken.fail("no space left on device");
    farm.panics("indexer", "indexer-1", "segment 7 is empty");
    farm.registry.expect_workers("indexer", 1);
    let server = farm.serve();
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length === 4");

    // The worst first, and the summary names the faults.
    let order = ids(&browser);
    assert_eq!(order, ["importer-1", "indexer-1", "crawler-1", "mailer-1"]);
    let summary = browser.text("#summary");
    assert_eq!(summary, "2 of 4 workers need attention: 2 dead");
    assert!(browser.text("#worst").contains("dead"));
    browser.wait("document.title.startsWith('(3) Workers · ')");
    browser.wait_for_text("#warnings", "0 of 1 expected workers of type indexer live");
    let tiles = browser.text("#types");
    for wanted in [
        "crawler",
        "1 processing",
        "mailer",
        "1 idle",
        "indexer",
        "1 dead",
    ] {
        assert!(tiles.contains(wanted), "{wanted}: {tiles}");
    }

    assert!(cell(&browser, "crawler-1", ".state").contains("processing"));
    assert_eq!(cell(&browser, "crawler-1", ".c-type"), "crawler");
    assert_eq!(cell(&browser, "crawler-1", ".task"), "reading example.com");
    assert_eq!(cell(&browser, "crawler-1", ".c-run"), "run-17");
    assert_eq!(cell(&browser, "crawler-1", ".count"), "3 of 10");
    let bar = browser.eval(&format!(
        "(bar => [bar.value, bar.max, bar.getAttribute('aria-label')])({}.querySelector('progress'))",
        row("crawler-1")
    ));
    assert_eq!(bar, json!([3, 10, "Steps of its task: 3 of 10"]));
    for ages in [".heartbeat", ".progress"] {
        let age = cell(&browser, "crawler-1", ages);
        assert!(age.ends_with(" s"), "{age}");
    }
    let strip = browser.eval(&format!(
        "{}.querySelector('.strip').getAttribute('aria-label')",
        row("crawler-1")
    ));
    let strip = strip.as_str().unwrap();
    assert!(strip.starts_with("Last 10 minutes: "), "{strip}");
    assert!(strip.contains("processing for "), "{strip}");

    let reason = cell(&browser, "importer-1", ".reason");
    assert!(
        reason.starts_with("failed: no space left on device, "),
        "{reason}"
    );
    assert!(cell(&browser, "indexer-1", ".reason").contains(": segment 7 is empty, "));

    // The call stack is folded, and requested only when it is unfolded.
    browser.run(&format!(
        "{}.querySelector('.open').click()",
        row("indexer-1")
    ));
    browser.wait("document.querySelector('.more .stack')");
    assert_eq!(
        browser.eval("document.querySelector('.more .stack').open"),
        false
    );
    assert_eq!(
        browser.eval("document.querySelector('.more .stack pre').textContent"),
        "being resolved …"
    );
    browser.click(".more .stack summary");
    browser.wait_for_text(".more pre", "segment 7 is empty");
    // The application's own call comes first; those of the standard library are folded.
    browser.wait_for_text(".more .stack pre + pre", "support::farm::Farm::panics");
    assert!(browser.text(".more pre").contains("support/farm.rs:"));
    let own = browser.text(".more .stack pre + pre");
    assert!(!own.contains("std::") && !own.contains("0: "), "{own}");
    let all = "document.querySelector('.more .stack .stack')";
    assert_eq!(browser.eval(&format!("{all}.open")), false);
    let stack = browser.eval(&format!("{all}.querySelector('pre').textContent"));
    assert!(
        stack.as_str().unwrap().contains("0: "),
        "no frames: {stack}"
    );
    browser.run(&format!(
        "{}.querySelector('.open').click()",
        row("crawler-1")
    ));
    browser.wait_for_text(".more", "1.4.2");
    browser.wait_for_text(".more", "no limit for stalls");

    // An age keeps counting, and that of a worker that beats becomes small again.
    browser.wait(&format!(
        "parseInt({}.querySelector('.c-age.progress').textContent) >= 3",
        row("crawler-1")
    ));
    hb.beat();
    browser.wait(&format!(
        "parseInt({}.querySelector('.c-age.progress').textContent) <= 1",
        row("crawler-1")
    ));
    assert_calm(&browser, &server.url);
}

#[test]
fn changes_are_shown_without_a_reload() {
    let farm = Farm::new();
    let first = farm.worker("crawler").id("crawler-1").start().unwrap();
    first.beat();
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait_for_text("#summary", "The only worker is healthy");
    browser.run("window.same = true");

    let second = farm.worker("mailer").id("mailer-1").start().unwrap();
    second.beat();
    browser.wait(&row("mailer-1"));
    browser.wait_for_text("#types", "mailer");
    second.fail("connection refused");
    browser.wait_for_text("#log .error", "failed: connection refused");
    browser.wait_for_text("#log .error", "mailer-1");
    browser.wait(&format!("{}.classList.contains('bad')", row("mailer-1")));
    browser.wait_for_text("#summary", "1 of 2 workers needs attention: 1 dead");
    // A screen reader is notified too.
    let live = browser.eval("document.querySelector('#announcer').getAttribute('aria-live')");
    assert_eq!(live, "polite");
    browser.wait("document.querySelector('#announcer').textContent.includes('connection refused')");
    // The death is on the strip, at its right end.
    browser.wait(&format!(
        "{}.querySelector('.strip').getAttribute('aria-label').endsWith('dead for 5 s')
         || {}.querySelector('.strip').getAttribute('aria-label').includes('dead')",
        row("mailer-1"),
        row("mailer-1")
    ));
    drop(second);
    farm.registry.purge(Duration::ZERO);
    browser.wait(&format!("!({})", row("mailer-1")));
    assert_eq!(browser.eval("window.same"), true, "it was reloaded");

    // The history survives a reload: the server keeps events and strips.
    browser.refresh();
    browser.wait_for_text("#log .error", "failed: connection refused");
    assert_calm(&browser, &server.url);
}

#[test]
fn filter_and_order_survive_a_refresh_and_can_be_handed_on() {
    let farm = Farm::new();
    let start = |worker_type: &str, id: &str| farm.worker(worker_type).id(id).start().unwrap();
    let workers = [
        start("crawler", "crawler-1"),
        start("crawler", "crawler-2"),
        start("crawler", "crawler-10"),
        start("mailer", "mailer-1"),
    ];
    workers.iter().for_each(|hb| hb.beat());
    workers[1].mark_idle();
    workers[3].mark_idle();
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length === 4");

    browser.click("#filter");
    browser.keys("CRAWLER");
    browser.wait("document.querySelectorAll('.worker').length === 3");
    browser.click("[data-sort=id] button");
    browser.click("[data-sort=id] button");
    browser.wait(
        "document.querySelector('[data-sort=id]').getAttribute('aria-sort') === 'descending'",
    );
    browser.wait("document.querySelector('.worker .c-id').textContent === 'crawler-10'");
    assert_eq!(ids(&browser), ["crawler-10", "crawler-2", "crawler-1"]);
    let check = |browser: &Browser| {
        browser.wait("document.querySelectorAll('.worker').length === 3");
        assert_eq!(ids(browser), ["crawler-10", "crawler-2", "crawler-1"]);
        assert_eq!(
            browser.eval("document.querySelector('#filter').value"),
            "CRAWLER"
        );
        assert_eq!(browser.text("#count"), "(3 of 4)");
    };
    browser.refresh();
    check(&browser);
    let address = browser.url();
    assert!(address.ends_with("#q=CRAWLER&sort=-id"), "{address}");
    browser.open("about:blank");
    browser.open(&address);
    check(&browser);

    // Chips and tiles filter too.
    browser.run("[...document.querySelectorAll('#states button')].find(b => b.innerText === '2 idle').click()");
    browser.wait("document.querySelectorAll('.worker').length === 1");
    browser.click("#clear");
    browser.wait("document.querySelectorAll('.worker').length === 4");
    browser.run("document.querySelector('#types button').click()");
    browser.wait("document.querySelectorAll('.worker').length === 3");
    browser.refresh();
    browser.wait("document.querySelectorAll('.worker').length === 3");
    assert!(browser.url().contains("type=crawler"));
    browser.click("#filter");
    browser.keys("unknown");
    browser.wait_for_text("#empty", "No worker matches the filter.");
    // No address can break the page.
    for strange in [
        "#%",
        "#q=%E0%A4%A&sort=__proto__&state=constructor,,&view=x",
        "#type=&group=",
    ] {
        browser.open("about:blank");
        browser.open(&format!("{}{strange}", server.url));
        browser.wait("document.querySelector('#summary').innerText.includes('4 workers')");
    }
    assert_calm(&browser, &server.url);
}

/// Texts that would run, break out of an attribute or end the script, if they were not escaped.
const EVIL: [&str; 6] = [
    "<script>window.pwned=1</script>",
    "</script><img src=x onerror=window.pwned=2>",
    "\"'><svg onload=window.pwned=3>",
    "javascript:alert(window.pwned=4)",
    "{{constructor}}${window.pwned=5}`&lt;b&gt;",
    "<iframe srcdoc='<script>top.pwned=6</script>'>",
];

#[test]
fn what_workers_report_is_escaped() {
    let farm = Farm::new();
    let all = EVIL.join(" ");
    let mut workers = Vec::new();
    for evil in EVIL {
        let hb = farm
            .worker(&format!("type {evil}"))
            .id(format!("id {evil}"))
            .group(format!("group {evil}"))
            .metadata(format!("key {evil}"), format!("value {evil}"))
            .start()
            .unwrap();
        hb.update_task(
            format!("run {evil}"),
            format!("task {evil}"),
            Activity::Processing,
        );
        workers.push(hb);
    }
    let broken = farm.worker("x").id("broken").start().unwrap();
    broken.beat();
    farm.panics("x", "panicked", &all);
    farm.registry.expect_workers(EVIL[1], 1);
    let turned = farm.worker("x").id("turned").start().unwrap();
    turned.update_task("r", "gnp.\u{202e}exe\u{7}\u{0}\nnext", Activity::Processing);
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length === 9");
    broken.fail(&all);

    for evil in EVIL {
        let id = format!("id {evil}");
        browser.wait(&row(&id));
        assert_eq!(cell(&browser, &id, ".c-type"), format!("type {evil}"));
        assert_eq!(cell(&browser, &id, ".task"), format!("task {evil}"));
        assert_eq!(cell(&browser, &id, ".c-run"), format!("run {evil}"));
        assert!(browser.text("#types").contains(&format!("type {evil}")));
        assert!(browser.text("#groups").contains(&format!("group {evil}")));
        browser.run(&format!("{}.querySelector('.open').click()", row(&id)));
        browser.wait_for_text(".more dt", &format!("key {evil}"));
        browser.wait_for_text(".more dd", &format!("value {evil}"));
    }
    // Reasons, events and call stacks.
    browser.wait_for_text(".reason", &format!("failed: {all}"));
    browser.wait_for_text("#log .what", &format!("failed: {all}"));
    browser.wait_for_text("#warnings", EVIL[1]);
    browser.run(&format!(
        "{}.querySelector('.open').click()",
        row("panicked")
    ));
    browser.wait("document.querySelector('.more .stack')");
    browser.run("document.querySelector('.more .stack').open = true");
    browser.wait_for_text(".more pre", &all);
    // Characters that change the direction of writing, or are invisible, are shown by their number.
    let task = cell(&browser, "turned", ".task");
    assert!(
        task.starts_with("gnp.⟨U+202E⟩exe⟨U+0007⟩⟨U+0000⟩"),
        "{task:?}"
    );
    // A filter is text too, and so is an address.
    browser.click("#filter");
    browser.keys(EVIL[1]);
    browser.wait("document.querySelectorAll('.worker').length >= 1");
    browser.refresh();
    browser.wait("document.querySelectorAll('.worker').length >= 1");

    assert_eq!(browser.eval("window.pwned"), Value::Null);
    let strange = "document.querySelectorAll('svg, iframe, img, [onerror], [onload], [srcdoc], a[href^=javascript]').length";
    assert_eq!(browser.eval(strange), 0);
    assert_eq!(
        browser.eval("document.querySelectorAll('script').length"),
        1
    );
    // Nothing was blocked, because nothing was tried. No dialog is open either: it would block
    // every query.
    assert_calm(&browser, &server.url);
}

#[test]
fn untrusted_callers_see_states_and_no_reasons() {
    let farm = Farm::new();
    let hb = farm
        .worker("crawler")
        .id("crawler-1")
        .metadata("key", "s3cret")
        .start()
        .unwrap();
    hb.update_task("s3cret", "s3cret", Activity::Processing);
    farm.panics("indexer", "indexer-1", "s3cret");
    farm.registry.expect_workers("s3cret type", 2);
    let server = farm.serve_with(|endpoint| endpoint.show_reasons(false));
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length === 2");
    let other = farm.worker("mailer").id("mailer-1").start().unwrap();
    other.beat();
    other.fail("s3cret");
    browser.wait_for_text("#log", "mailer-1");
    browser.wait_for_text("#warnings", "Workers of 1 type are missing.");
    browser.run("document.querySelectorAll('.open').forEach(button => button.click())");
    browser.wait_for_text(".more", "(reasons are not shown)");
    browser.wait("document.querySelectorAll('.more dt').length > 8");
    browser.wait_for_text("#log", "dead");
    let html = browser.eval("document.documentElement.outerHTML");
    assert!(!html.as_str().unwrap().contains("s3cret"), "{html}");
    assert!(browser.page().contains("dead"));
    assert_eq!(
        browser.eval("document.querySelectorAll('.stack').length"),
        0
    );
    assert_calm(&browser, &server.url);
}

fn stored(store: &impl HeartbeatStore, group: &str, id: &str, state: State) {
    let mut registration = Registration::new("gpu", id);
    registration.info.group = group.to_owned();
    registration.info.thresholds = Some(Thresholds::new(Duration::from_secs(3_600)));
    let key = store.register(&[registration]).unwrap().remove(0);
    let mut beat = Beat::new(key, state);
    beat.status.task = Some(format!("task of {id}"));
    beat.metadata = vec![("zone".into(), "eu-1".into())];
    store.beat(&[beat]).unwrap();
}

#[test]
fn a_store_shows_its_groups_and_their_events() {
    let farm = Farm::new();
    let hb = farm
        .worker("crawler")
        .id("of this process")
        .start()
        .unwrap();
    hb.beat();
    let store = TestStore::default();
    for (group, id) in [
        ("rack-1", "gpu-1"),
        ("rack-1", "gpu-2"),
        ("rack-2", "gpu-3"),
    ] {
        stored(&store, group, id, State::Processing);
    }
    let server = farm.serve_with(|endpoint| endpoint.fleet(store.clone()));
    let browser = Browser::start();
    browser.open(&server.url);
    // With a store, the page opens on the fleet.
    browser.wait("document.querySelectorAll('.worker').length === 3");
    browser.wait("document.title.startsWith('Fleet · ')");
    assert_eq!(browser.text("h1"), "Fleet");
    let server_line = browser.text("#server");
    for part in ["(pid ", env!("CARGO_PKG_VERSION"), "since "] {
        assert!(server_line.contains(part), "{part}: {server_line}");
    }
    assert_eq!(ids(&browser), ["gpu-1", "gpu-2", "gpu-3"]);
    browser.wait_for_text("#groups", "online: 2 processing");
    browser.run(&format!("{}.querySelector('.open').click()", row("gpu-1")));
    browser.wait_for_text(".more", "eu-1");

    // Events are derived from the difference of two readings.
    let row_of = |id: &str| {
        let rows = store
            .list(&worker_heartbeat::fleet::WorkerFilter::default())
            .unwrap();
        rows.into_iter().find(|row| row.key.id == id).unwrap()
    };
    let ending = Ending::Dead(Arc::new(death("the GPU fell off the bus")));
    let stop = Stop::new(row_of("gpu-3").key, StoredEnding::from(&ending));
    store.stop(&[stop]).unwrap();
    stored(&store, "rack-3", "gpu-4", State::Idle);
    browser.wait_for_text(
        "#log .error",
        "went offline: dead: failed: the GPU fell off the bus",
    );
    browser.wait_for_text("#groups", "offline: 1 dead");
    browser.wait_for_text("#log", "new: idle");
    stored(&store, "rack-2", "gpu-3", State::Processing);
    browser.wait_for_text("#log", "came back: processing, was dead");
    let stop = Stop::new(row_of("gpu-4").key, StoredEnding::stopped(&StopCause::Stop))
        .ago(Duration::from_secs(60));
    store.stop(&[stop]).unwrap();
    browser.wait_for_text("#log", "stopped: by stop()");
    store.purge(Duration::ZERO).unwrap();
    browser.wait_for_text("#log", "removed from the store");

    browser.run(&format!("{}.querySelector('.open').click()", row("gpu-1")));
    browser.wait("!document.querySelector('.more')");

    // The view is part of the address. If a store fails, the page says so, and all else continues.
    browser.refresh();
    browser.wait("document.querySelectorAll('.worker').length === 3");
    store.fail("no route to host");
    browser.wait_for_text("#warnings", "The store cannot be read: ");
    browser.wait_for_text("#warnings", "no route to host");
    browser.wait("/ is \\d+ s old/.test(document.querySelector('#warnings').innerText)");
    browser.wait("document.body.classList.contains('old')");
    assert_eq!(ids(&browser).len(), 3);
    store.recover();
    browser.wait("!document.body.classList.contains('old')");
    store.hang();
    browser.wait_for_text("#warnings", "The store has not answered for ");
    browser.click("[data-view=process]");
    browser.wait(&row("of this process"));
    browser.wait("document.querySelector('#warnings').innerText === ''");
    assert_eq!(browser.text("h1"), "Workers of this process");
    assert!(browser.url().ends_with("#view=process"));
    store.recover();
    assert_calm(&browser, &server.url);
}

fn death(error: &str) -> Death {
    // A death cannot be constructed: this one is read from a registry.
    let registry = Registry::new();
    let hb = WorkerHeartbeat::builder("x")
        .registry(&registry)
        .start()
        .unwrap();
    hb.fail(error);
    match hb.health() {
        worker_heartbeat::Health::Dead { death, .. } => (*death).clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_page_without_connection_says_so_and_reconnects() {
    let farm = Farm::new();
    let hb = farm.worker("crawler").id("crawler-1").start().unwrap();
    hb.beat();
    let server = farm.serve();
    let address = server.server.local_addr();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait_for_text("#link", "Live");
    drop(server);
    browser.wait_for_text("#link", "Disconnected");
    browser.wait_for_text("#warnings", "This page shows the state at ");
    browser.wait("/Disconnected for [3-9] s/.test(document.querySelector('#warnings').innerText)");
    let faded = "getComputedStyle(document.querySelector('main')).opacity < 1";
    assert_eq!(browser.eval(faded), true);
    assert!(
        cell(&browser, "crawler-1", ".state").contains("active"),
        "the last that is known"
    );

    let other = farm.worker("mailer").id("mailer-1").start().unwrap();
    other.beat();
    let _server = HealthEndpoint::new(&farm.registry).serve(address).unwrap();
    browser.wait_for_text("#link", "Live");
    browser.wait(&row("mailer-1"));
    assert_eq!(browser.eval("document.body.className"), "");
    assert_eq!(browser.text("#warnings"), "");
}

/// Presses the tab key until this element has the focus.
fn tab_to(browser: &Browser, expression: &str) {
    for _ in 0..60 {
        browser.keys(TAB);
        if browser.eval(expression) == json!(true) {
            return;
        }
    }
    panic!("the keyboard does not reach {expression}");
}

#[test]
fn the_keyboard_and_a_screen_reader_reach_everything() {
    let farm = Farm::new();
    let hb = farm.worker("crawler").id("crawler-1").start().unwrap();
    hb.beat();
    farm.panics("indexer", "indexer-1", "segment 7 is empty");
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length === 2");
    browser.keys(TAB);
    assert_eq!(
        browser.eval("document.activeElement.innerText"),
        "Skip to the workers"
    );
    browser.keys(ENTER);
    assert_eq!(browser.eval("document.activeElement.id"), "workers");
    tab_to(
        &browser,
        "document.activeElement.closest('[data-sort=id]') !== null",
    );
    let outline = browser.eval("getComputedStyle(document.activeElement).outlineStyle");
    assert_eq!(outline, "solid", "the focus is visible");
    browser.keys(ENTER);
    browser
        .wait("document.querySelector('[data-sort=id]').getAttribute('aria-sort') === 'ascending'");
    browser.wait("document.querySelector('.worker .c-id').textContent === 'crawler-1'");
    browser.keys(ENTER);
    browser.wait("document.querySelector('.worker .c-id').textContent === 'indexer-1'");
    tab_to(&browser, "document.activeElement.className === 'open'");
    let name = browser.eval("document.activeElement.getAttribute('aria-label')");
    assert_eq!(name, "Details of indexer-1, dead");
    browser.keys(ENTER);
    browser.wait("document.activeElement.getAttribute('aria-expanded') === 'true'");
    browser.wait("document.querySelector('.more .stack')");
    tab_to(&browser, "document.activeElement.tagName === 'SUMMARY'");
    browser.keys(ENTER);
    browser.wait_for_text(".more pre", "panicked at");

    // A row that moves keeps the focus.
    browser.run(&format!(
        "{}.querySelector('.open').focus()",
        row("crawler-1")
    ));
    hb.fail("no luck");
    browser.click("[data-sort=state] button");
    browser.run(&format!(
        "{}.querySelector('.open').focus()",
        row("indexer-1")
    ));
    browser.wait("document.querySelectorAll('.worker.bad').length === 2");
    assert_eq!(
        browser.eval("document.activeElement.getAttribute('aria-label')"),
        "Details of indexer-1, dead"
    );

    // As the browser describes it to a screen reader.
    let tree = browser.devtools("Accessibility.getFullAXTree", &json!({}));
    let nodes = tree["nodes"].as_array().unwrap();
    let role = |node: &&Value| {
        node["role"]["value"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let named = |wanted: &str| nodes.iter().filter(|node| role(node) == wanted).count();
    assert_eq!((named("table"), named("columnheader")), (1, 9));
    assert!(
        named("row") >= 3 && named("cell") >= 18,
        "{} rows",
        named("row")
    );
    let nameless = nodes.iter().find(|node| {
        ["button", "img", "link", "searchbox", "progressbar"].contains(&role(node).as_str())
            && node["ignored"] != json!(true)
            && node["name"]["value"]
                .as_str()
                .unwrap_or_default()
                .trim()
                .is_empty()
    });
    assert_eq!(nameless, None, "everything that can be used has a name");
    assert_calm(&browser, &server.url);
}

/// The lowest contrast of any visible text, and the text.
const CONTRAST: &str = r"
const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
const colour = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
const over = (top, under) => top.slice(0, 3).map((c, n) => c * top[3] / 255 + under[n] * (1 - top[3] / 255)).concat(255);
const light = rgb => { const [r, g, b] = rgb.map(c => (c /= 255) <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
const ground = e => e ? over(colour(getComputedStyle(e).backgroundColor), ground(e.parentElement)) : colour('white');
let worst = [99, ''];
for (const e of document.querySelectorAll('body *')) {
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility() || e.closest('script, style, template, .unseen')) continue;
  const under = ground(e), ink = over(colour(getComputedStyle(e).color), under);
  const [a, b] = [light(under), light(ink)].sort((x, y) => y - x), contrast = (a + .05) / (b + .05);
  if (contrast < worst[0]) worst = [contrast, e.className + ': ' + e.innerText];
}
return worst;";

#[test]
fn light_dark_and_narrow_all_can_be_read() {
    let farm = Farm::new();
    let _workers = farm.one_in_each_state();
    let server = farm.serve();
    let browser = Browser::start();
    browser.dark(false);
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length >= 9");
    browser.run("document.querySelector('.open').click()");
    browser.wait("document.querySelectorAll('.more dt').length > 5");
    let ground = || browser.eval("getComputedStyle(document.body).backgroundColor");
    let bright = ground();
    for dark in [false, true] {
        browser.dark(dark);
        for pressed in [false, true] {
            if pressed {
                browser.run("document.querySelector('#types button').click()");
                browser.wait("document.querySelector('#types [aria-pressed=true]')");
            }
            let worst = browser.run(CONTRAST);
            assert!(worst[0].as_f64().unwrap() >= 4.5, "dark: {dark}: {worst}");
        }
        browser.click("#clear");
    }
    assert_ne!(ground(), bright, "dark is dark");
    browser.dark(false);
    for width in [400, 760, 1000, 1090, 1440] {
        browser.size(width, 800);
        let wide = browser.eval("document.documentElement.scrollWidth");
        assert!(
            wide.as_u64().unwrap() <= u64::from(width),
            "{wide} at {width}"
        );
    }
    assert_calm(&browser, &server.url);
}

/// From now on: the duration of each frame, and of each long task.
const MEASURE: &str = "
window.frames_ = []; window.tasks = []; window.draws = [];
new PerformanceObserver(list => list.getEntries().forEach(e => window.tasks.push(e.duration))).observe({ type: 'longtask' });
let last = performance.now();
requestAnimationFrame(function next(now) { window.frames_.push(now - last); last = now;
  if (window.drawTook) { window.draws.push(window.drawTook); window.drawTook = 0; } requestAnimationFrame(next); });";

/// Stops a thread, also when the test fails.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_thousand_workers_that_all_change_each_second_stay_smooth() {
    let farm = Farm::new();
    let start = |n: usize| {
        let hb = farm
            .worker(&format!("type-{}", n % 8))
            .id(format!("worker-{n}"));
        let hb = hb.start().unwrap();
        hb.beat();
        hb
    };
    let workers: Vec<_> = (0..1_000).map(start).collect();
    let server = farm.serve();
    let browser = Browser::start();
    browser.open(&server.url);
    browser.wait("document.querySelectorAll('.worker').length === 1000");
    let quiet = Arc::new(AtomicBool::new(false));
    let _ended = Ended(Arc::clone(&quiet));
    let stop = Arc::clone(&quiet);
    let pace = std::thread::spawn(move || {
        for second in 0_u64.. {
            for (n, hb) in workers.iter().enumerate() {
                let task = format!("page {second} of site {n}");
                hb.update_task("run-1", &task, Activity::Processing);
            }
            // The pace of the observed workers.
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(100));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
    });
    let page = "Number(document.querySelector('.worker .task').textContent.split(' ')[1])";
    browser.wait(&format!("{page} >= 2"));
    browser.run(MEASURE);
    browser.run("window.scrollTo(0, 8000)");
    browser.wait("window.draws.length >= 10");
    let take = |name: &str| -> Vec<f64> {
        let mut numbers: Vec<f64> = serde_json::from_value(browser.eval(name)).unwrap();
        numbers.sort_by(f64::total_cmp);
        numbers
    };
    let (tasks, draws) = (take("window.tasks"), take("window.draws"));
    let frames = take("window.frames_");
    quiet.store(true, Ordering::Relaxed);
    pace.join().unwrap();
    let at = |numbers: &[f64], part: f64| {
        let n = (numbers.len() as f64 * part) as usize;
        numbers
            .get(n.min(numbers.len().saturating_sub(1)))
            .copied()
            .unwrap_or(0.0)
    };
    println!(
        "1000 workers that change each second: drawing them p50 {:.1} ms, longest {:.1} ms; \
         frames p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms; {} tasks above 50 ms, longest {:.0} ms",
        at(&draws, 0.5),
        at(&draws, 1.0),
        at(&frames, 0.5),
        at(&frames, 0.99),
        at(&frames, 1.0),
        tasks.len(),
        at(&tasks, 1.0)
    );
    assert_calm(&browser, &server.url);
}

/// The picture in the guide: `DASHBOARD_PICTURE=docs/dashboard.png cargo test --features http
/// --test dashboard picture`, then `scripts/pictures.py embed`. `DASHBOARD_PICTURE_DARK` and `_NARROW`
/// name others.
#[test]
fn a_picture_is_made_of_a_farm() {
    let farm = Farm::new();
    let _workers = farm.realistic();
    let server = farm.serve();
    let browser = Browser::with(&["--hide-scrollbars"]);
    browser.size(1440, 740);
    browser.dark(false);
    browser.open(&server.url);
    browser.wait_for_text("#summary", "need attention");
    browser.wait("document.querySelectorAll('.worker').length >= 12");
    let pictures = [
        "DASHBOARD_PICTURE",
        "DASHBOARD_PICTURE_DARK",
        "DASHBOARD_PICTURE_NARROW",
    ];
    let paths = pictures.map(std::env::var_os);
    if paths.iter().any(Option::is_some) {
        // Strips with content: the farm must have lived for a while.
        farm.live_for(Duration::from_secs(100));
    }
    browser.run(&format!(
        "{}.querySelector('.open').click()",
        row("indexer-2")
    ));
    browser.wait("document.querySelector('.more .stack')");
    for (n, path) in paths.iter().enumerate() {
        browser.dark(n == 1);
        if n == 2 {
            browser.size(400, 1000);
        }
        // The next frame shows it.
        browser.wait("await_frames = (window.await_frames || 0) + 1, window.await_frames > 3");
        let picture = browser.picture();
        assert!(picture.len() > 20_000, "an empty page");
        if let Some(path) = path {
            browser.save_picture(Path::new(path));
        }
    }
    assert_calm(&browser, &server.url);
}
