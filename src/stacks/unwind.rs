//! Unwinding by call frame information, as DWARF 5, section 6.4, and the System V ABI describe it.

use gimli::{
    BaseAddresses, CfaRule, EhFrame, EndianSlice, EvaluationResult, Expression, LittleEndian,
    Location, Register, RegisterRule, UnwindContext, UnwindSection, Value,
};

use super::frame_pointer;
use super::memory::{Mappings, Memory};
use super::module::{FrameInfo, Module};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Numbers of registers in call frame information (System V ABI for x86-64, figure 3.36).
const FRAME_POINTER: usize = 6;
const STACK_POINTER: usize = 7;
const RETURN_ADDRESS: usize = 16;
const REGISTERS: usize = 17;
/// Registers that a function restores before it returns.
const PRESERVED: [usize; 6] = [3, 6, 12, 13, 14, 15];
const MOST_FRAMES: usize = 128;

/// Where a stack ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the function that the thread began with.
    Bottom,
    /// There are more than are read.
    Limit,
    /// At code without call frame information, or with one that cannot be followed.
    Unknown(&'static str),
}

/// An address in the code, innermost first.
#[derive(Clone, Copy, Debug)]
pub(super) struct CodeAddress {
    /// Which of the modules has it.
    pub module: Option<usize>,
    /// The instruction that is executed; behind a call, its last byte.
    pub address: u64,
}

pub(super) struct Unwound {
    pub addresses: Vec<CodeAddress>,
    pub modules: Vec<Module>,
    pub end: End,
}

type Registers = [Option<u64>; REGISTERS];

/// The calls that led to this place.
pub(super) fn unwind(
    mappings: &Mappings,
    memory: &Memory,
    program_counter: u64,
    stack_pointer: u64,
) -> Unwound {
    let mut registers: Registers = [None; REGISTERS];
    registers[RETURN_ADDRESS] = Some(program_counter);
    registers[STACK_POINTER] = Some(stack_pointer);
    let mut unwound = Unwound {
        addresses: Vec::new(),
        modules: Vec::new(),
        end: End::Limit,
    };
    let mut context = UnwindContext::new();
    // Whether the address is that of the next instruction, not one behind a call.
    let mut is_exact = true;
    while unwound.addresses.len() < MOST_FRAMES {
        let (Some(next), Some(top)) = (registers[RETURN_ADDRESS], registers[STACK_POINTER]) else {
            unwound.end = End::Unknown("a register is not known");
            return unwound;
        };
        if next == 0 {
            unwound.end = End::Bottom;
            return unwound;
        }
        let address = if is_exact { next } else { next - 1 };
        let module = module_at(&mut unwound.modules, mappings, memory, address);
        unwound.addresses.push(CodeAddress { module, address });
        let Some(module) = module.and_then(|n| unwound.modules.get(n)) else {
            unwound.end = End::Unknown("the code belongs to no module");
            return unwound;
        };
        let step = module
            .frame_info(memory, address)
            .ok_or(End::Unknown("no call frame information"))
            .and_then(|info| caller(mappings, memory, &info, address, &registers, &mut context));
        match step {
            Ok(caller) => {
                registers = caller.registers;
                is_exact = caller.is_exact;
            }
            // The C library's clone3 has none behind its system call. There, as in any function that
            // has pushed nothing, the return address is on top.
            Err(End::Unknown(_)) if is_leaf(&unwound, mappings, memory, top) => {
                registers = [None; REGISTERS];
                registers[RETURN_ADDRESS] = memory.u64(top);
                registers[STACK_POINTER] = Some(top + 8);
                is_exact = false;
            }
            Err(end) => {
                unwound.end = end;
                return unwound;
            }
        }
        if !is_exact && registers[STACK_POINTER].is_some_and(|caller| caller <= top) {
            unwound.end = End::Unknown("the stack does not grow");
            return unwound;
        }
    }
    unwound
}

fn is_leaf(unwound: &Unwound, mappings: &Mappings, memory: &Memory, top: u64) -> bool {
    unwound.addresses.len() == 1
        && memory
            .u64(top)
            .is_some_and(|address| frame_pointer::follows_call(mappings, memory, address))
}

fn module_at(
    modules: &mut Vec<Module>,
    mappings: &Mappings,
    memory: &Memory,
    address: u64,
) -> Option<usize> {
    let known = modules
        .iter()
        .position(|module| module.range.contains(&address));
    known.or_else(|| {
        modules.push(Module::at(mappings, memory, address)?);
        Some(modules.len() - 1)
    })
}

struct Caller {
    registers: Registers,
    /// A signal interrupted it: it was not calling.
    is_exact: bool,
}

/// The registers of the calling function.
fn caller(
    mappings: &Mappings,
    memory: &Memory,
    info: &FrameInfo,
    address: u64,
    registers: &Registers,
    context: &mut UnwindContext<usize>,
) -> Result<Caller, End> {
    let mut section = EhFrame::new(&info.section, LittleEndian);
    section.set_address_size(8);
    let bases = BaseAddresses::default().set_eh_frame(info.section_address);
    let entry = section
        .fde_from_offset(&bases, info.entry.into(), EhFrame::cie_from_offset)
        .map_err(|_| End::Unknown("call frame information that can't be read"))?;
    if !entry.contains(address) {
        return Err(End::Unknown("no call frame information"));
    }
    let row = entry
        .unwind_info_for_address(&section, &bases, context, address)
        .map_err(|_| End::Unknown("call frame information that can't be read"))?;
    let return_rule = row.register(Register(RETURN_ADDRESS as u16));
    if return_rule == RegisterRule::Undefined {
        return Err(End::Bottom);
    }
    let encoding = entry.cie().encoding();
    let run = |expression: Expression<Slice<'_>>, registers: &Registers, start| {
        evaluate(expression, encoding, registers, memory, start)
    };
    let frame_address = |registers: &Registers| match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            let value = registers.get(usize::from(register.0)).copied().flatten()?;
            Some(value.wrapping_add_signed(*offset))
        }
        CfaRule::Expression(expression) => run(expression.get(&section).ok()?, registers, None),
    };
    let mut known = *registers;
    let frame = match frame_address(&known) {
        Some(frame) => frame,
        None if known[FRAME_POINTER].is_none() => {
            let top = known[STACK_POINTER].ok_or(End::Unknown("a register is not known"))?;
            known[FRAME_POINTER] =
                frame_pointer::find(mappings, memory, info.function, address, top);
            frame_address(&known).ok_or(End::Unknown("a register is not known"))?
        }
        None => return Err(End::Unknown("a register is not known")),
    };
    let mut caller = [None; REGISTERS];
    for (n, value) in caller.iter_mut().enumerate() {
        let at = |address: u64| memory.u64(address);
        *value = match row.register(Register(n as u16)) {
            // Without a rule.
            RegisterRule::Undefined if n == STACK_POINTER => Some(frame),
            RegisterRule::Undefined if PRESERVED.contains(&n) => known[n],
            RegisterRule::SameValue => known[n],
            RegisterRule::Offset(offset) => at(frame.wrapping_add_signed(offset)),
            RegisterRule::ValOffset(offset) => Some(frame.wrapping_add_signed(offset)),
            RegisterRule::Register(other) => known.get(usize::from(other.0)).copied().flatten(),
            RegisterRule::Expression(expression) => expression
                .get(&section)
                .ok()
                .and_then(|expression| at(run(expression, &known, Some(frame))?)),
            RegisterRule::ValExpression(expression) => expression
                .get(&section)
                .ok()
                .and_then(|expression| run(expression, &known, Some(frame))),
            _ => None,
        };
    }
    Ok(Caller {
        registers: caller,
        is_exact: entry.is_signal_trampoline(),
    })
}

fn evaluate(
    expression: Expression<Slice<'_>>,
    encoding: gimli::Encoding,
    registers: &Registers,
    memory: &Memory,
    start: Option<u64>,
) -> Option<u64> {
    let mut evaluation = expression.evaluation(encoding);
    // A loop in it must end.
    evaluation.set_max_iterations(1_000);
    if let Some(start) = start {
        evaluation.set_initial_value(start);
    }
    let mut state = evaluation.evaluate().ok()?;
    loop {
        state = match state {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = registers.get(usize::from(register.0)).copied().flatten()?;
                evaluation
                    .resume_with_register(Value::Generic(value))
                    .ok()?
            }
            EvaluationResult::RequiresMemory { address, .. } => {
                let value = memory.u64(address)?;
                evaluation.resume_with_memory(Value::Generic(value)).ok()?
            }
            _ => return None,
        };
    }
    match evaluation.as_result().last()?.location {
        Location::Address { address } => Some(address),
        _ => None,
    }
}
