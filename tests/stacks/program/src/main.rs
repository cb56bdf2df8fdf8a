//! Prints the call stacks of threads that hang in many ways, and those of a thread that changes.

#[path = "../../scenarios.rs"]
mod scenarios;

use worker_heartbeat::CallStack;

fn main() {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("replace") {
        // As an update does with a program that runs.
        let own = std::env::current_exe().unwrap();
        std::fs::remove_file(&own).unwrap();
        std::fs::write(own, "the next version").unwrap();
    }
    for (name, stack) in scenarios::all() {
        println!("{name}\t{}", frames(&stack));
    }
    // That the stacks of a thread that changes are right is seen by their names.
    if argument.as_deref() != Some("bare") {
        let counts = scenarios::changing(5_000);
        println!("changing\t{counts:?}");
    }
}

/// Why the stack is cut, and for each call the function, and the offset in this program.
fn frames(stack: &CallStack) -> String {
    let program = std::env::current_exe().unwrap();
    let mut text = stack.cut.clone().unwrap_or_default();
    for frame in &stack.frames {
        let function = frame.function.as_deref().unwrap_or_default();
        let is_own = program.as_os_str() == &*frame.module;
        let offset = if is_own { frame.offset } else { 0 };
        text.push_str(&format!("\t{function} {offset}"));
    }
    text
}
