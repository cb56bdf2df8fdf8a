//! The frame pointer of a thread that is blocked in the kernel, which does not show it.
//!
//! x86-64. A function with a frame pointer begins with `push rbp; mov rbp, rsp`, pushes more registers,
//! and moves the stack pointer once. So the frame pointer follows from the stack pointer and the code of
//! that prologue. What it points at must be plausible: the word above is a return address behind a call.
//! If the code has another form, the stack is searched for such a place.

use super::memory::{Mappings, Memory};

/// Bytes of code that a prologue may take.
const LONGEST_PROLOGUE: usize = 96;
/// How far the stack is searched.
const SEARCHED: usize = 32 * 1024;
/// `endbr64`, with which functions begin if control flow is enforced.
const LANDING_PAD: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

/// How well a return address fits a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    None,
    /// It follows an indirect call, whose target is not known.
    Indirect,
    /// It follows a call of this function.
    Direct,
}

/// The frame pointer in `function`, whose frame ends at `stack_pointer`, at the instruction `at`.
pub(super) fn find(
    mappings: &Mappings,
    memory: &Memory,
    function: u64,
    at: u64,
    stack_pointer: u64,
) -> Option<u64> {
    let code = memory.up_to(function, LONGEST_PROLOGUE);
    let done = usize::try_from(at.saturating_sub(function)).unwrap_or(usize::MAX);
    let called = |frame_pointer: u64| {
        let address = memory.u64(frame_pointer.wrapping_add(8));
        address.map_or(Call::None, |address| {
            call_before(mappings, memory, address, function)
        })
    };
    if let Some(depth) = prologue_depth(&code, done) {
        let frame_pointer = stack_pointer.wrapping_add(depth);
        if called(frame_pointer) > Call::None {
            return Some(frame_pointer);
        }
    }
    let stack = memory.up_to(stack_pointer, SEARCHED);
    let mut indirect = None;
    for (n, word) in stack.chunks_exact(8).enumerate().skip(1) {
        let address = u64::from_le_bytes(word.try_into().ok()?);
        let frame_pointer = stack_pointer + (n as u64 - 1) * 8;
        match call_before(mappings, memory, address, function) {
            Call::Direct => return Some(frame_pointer),
            Call::Indirect => indirect = indirect.or(Some(frame_pointer)),
            Call::None => {}
        }
    }
    indirect
}

/// The distance from the stack pointer to the frame pointer once `done` bytes of the function were
/// executed; `None` if the prologue has another form.
fn prologue_depth(code: &[u8], done: usize) -> Option<u64> {
    let start = if code.starts_with(&LANDING_PAD) { 4 } else { 0 };
    // push rbp; mov rbp, rsp
    if done < start + 4 || !code.get(start..)?.starts_with(&[0x55, 0x48, 0x89, 0xe5]) {
        return None;
    }
    let (mut at, mut depth) = (start + 4, 0);
    while at < done {
        match code.get(at..)? {
            // push r8 .. r15
            [0x41, 0x50..=0x57, ..] => (at, depth) = (at + 2, depth + 8),
            // push rax .. rdi
            [0x50..=0x57, ..] => (at, depth) = (at + 1, depth + 8),
            // sub rsp, n
            [0x48, 0x83, 0xec, n, ..] => return Some(depth + u64::from(*n)),
            [0x48, 0x81, 0xec, a, b, c, d, ..] => {
                return Some(depth + u64::from(u32::from_le_bytes([*a, *b, *c, *d])));
            }
            // and rsp, n: the distance depends on the caller.
            [0x48, 0x81 | 0x83, 0xe4, ..] => return None,
            _ => break,
        }
    }
    Some(depth)
}

/// Whether the address follows a call, of any function.
pub(super) fn follows_call(mappings: &Mappings, memory: &Memory, address: u64) -> bool {
    if call_before(mappings, memory, address, 0) > Call::None {
        return true;
    }
    // A direct call of another function than number 0.
    let is_code = mappings.code_at(address.wrapping_sub(8)).is_some();
    let before = memory.bytes::<6>(address.wrapping_sub(6));
    is_code && before.is_some_and(|code| code[1] == 0xe8 || code[..2] == [0xff, 0x15])
}

/// How the call before this return address fits the function.
fn call_before(mappings: &Mappings, memory: &Memory, address: u64, function: u64) -> Call {
    if mappings.code_at(address).is_none() || mappings.code_at(address.wrapping_sub(8)).is_none() {
        return Call::None;
    }
    let Some(code) = memory.bytes::<7>(address.wrapping_sub(7)) else {
        return Call::None;
    };
    let displacement = |bytes: [u8; 4]| i64::from(i32::from_le_bytes(bytes));
    let [_, _, a, b, c, d, e] = code;
    // call rel32
    if a == 0xe8 {
        let target = address.wrapping_add_signed(displacement([b, c, d, e]));
        if target == function || stub_target(memory, target) == Some(function) {
            return Call::Direct;
        }
    }
    // call [rip + disp32]: through the table of addresses that the linker fills in.
    if code[1..3] == [0xff, 0x15] {
        let slot = address.wrapping_add_signed(displacement([b, c, d, e]));
        return if memory.u64(slot) == Some(function) {
            Call::Direct
        } else {
            Call::None
        };
    }
    let register = matches!(code, [.., 0xff, 0xd0..=0xd7]);
    let [.., last] = code;
    let in_register = matches!(code[5..], [0xff, 0x10..=0x17]) && !matches!(last & 7, 4 | 5);
    let near = code[4] == 0xff && matches!(code[5], 0x50..=0x57) && code[5] & 7 != 4;
    let near_indexed = code[3..5] == [0xff, 0x54];
    let far = code[1] == 0xff && matches!(code[2], 0x90..=0x97) && code[2] & 7 != 4;
    let far_indexed = code[..2] == [0xff, 0x94];
    if register || in_register || near || near_indexed || far || far_indexed {
        Call::Indirect
    } else {
        Call::None
    }
}

/// Where a stub of the procedure linkage table jumps to: `jmp [rip + disp32]`.
fn stub_target(memory: &Memory, stub: u64) -> Option<u64> {
    let code = memory.bytes::<16>(stub)?;
    let mut at = if code.starts_with(&LANDING_PAD) { 4 } else { 0 };
    if code[at] == 0xf2 {
        at += 1;
    }
    let [0xff, 0x25, a, b, c, d] = *code.get(at..at + 6)? else {
        return None;
    };
    let next = stub.wrapping_add(at as u64 + 6);
    memory.u64(next.wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d]))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: [u8; 4] = [0x55, 0x48, 0x89, 0xe5];

    fn depth(rest: &[u8], done: usize) -> Option<u64> {
        prologue_depth(&[&FRAME, rest].concat(), done)
    }

    #[test]
    fn a_prologue_gives_the_distance() {
        // push r15; push rbx; sub rsp, 0x28
        let code = [0x41, 0x57, 0x53, 0x48, 0x83, 0xec, 0x28, 0x90];
        assert_eq!(depth(&code, 40), Some(8 + 8 + 0x28));
        assert_eq!(depth(&code, 6), Some(8), "in the middle of it");
        assert_eq!(depth(&[0x90], 40), Some(0));
        // sub rsp, 0x12345
        let code = [0x48, 0x81, 0xec, 0x45, 0x23, 0x01, 0x00];
        assert_eq!(depth(&code, 40), Some(0x12345));
        // and rsp, -32
        assert_eq!(depth(&[0x48, 0x83, 0xe4, 0xe0], 40), None);
    }

    #[test]
    fn other_code_gives_none() {
        assert_eq!(prologue_depth(&[0x53, 0x48, 0x83, 0xec, 0x10], 40), None);
        assert_eq!(prologue_depth(&FRAME, 1), None, "before it");
        assert_eq!(prologue_depth(&[], 0), None);
        let code = [&LANDING_PAD[..], &FRAME, &[0x53, 0x90]].concat();
        assert_eq!(prologue_depth(&code, 40), Some(8));
    }
}
