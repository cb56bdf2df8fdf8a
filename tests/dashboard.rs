//! placeholder
#[path = "support/browser.rs"]
mod browser;
use browser::Browser;
#[test]
fn look() {
    let b = Browser::start();
    b.open(&std::env::var("URL").unwrap());
    std::thread::sleep(std::time::Duration::from_secs(4));
    b.run("document.querySelector('#rows .open').click()");
    std::thread::sleep(std::time::Duration::from_secs(1));
    b.save_picture("/tmp/chr/light.png".as_ref());
    b.dark(true);
    b.save_picture("/tmp/chr/dark.png".as_ref());
    b.dark(false);
    b.size(400, 900);
    b.save_picture("/tmp/chr/narrow.png".as_ref());
    println!("{:?}", b.complaints());
}
