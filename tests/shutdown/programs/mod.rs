//! The processes that the tests of the shutdown start.

mod fault_scenes;
mod scenes;
pub(crate) mod service;
mod work_scenes;

/// Plays a role, and ends the process.
pub(crate) fn play(role: &str) -> ! {
    if !role.starts_with("inherited") {
        service::reset_signals();
    }
    let (name, settings) = role.split_once(' ').unwrap_or((role, ""));
    if matches!(name, "service" | "inherited-service") {
        service::service(&service::Settings::read(settings));
    }
    scenes::play(role);
    fault_scenes::play(role);
    work_scenes::play(role);
    panic!("there is no {role} scene");
}
