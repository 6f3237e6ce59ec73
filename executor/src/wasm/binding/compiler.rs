//! The engine's compiler. Its functions are looked up only where something is compiled: an engine that was built without is
//! good for everything else.
//!
//! Optimisation levels are numbered the same in 0.14.1 and 0.17.1, and the output format 0 is the native one in both.

use super::{CString, Failure, Library, Object, RawResult, c_char, c_int, symbol};
use crate::aot::{Level, Options};

/// `WasmEdge_CompilerOutputFormat_Native`: a shared library.
const NATIVE: c_int = 0;

/// `WasmEdge_Bytes`.
#[repr(C)]
struct RawBytes {
    length: u32,
    bytes: *const u8,
}

functions! {
    configure_level = c"WasmEdge_ConfigureCompilerSetOptimizationLevel": fn(Object, c_int);
    configure_format = c"WasmEdge_ConfigureCompilerSetOutputFormat": fn(Object, c_int);
    configure_cost = c"WasmEdge_ConfigureStatisticsSetCostMeasuring": fn(Object, bool);
    configure_count = c"WasmEdge_ConfigureStatisticsSetInstructionCounting": fn(Object, bool);
    create = c"WasmEdge_CompilerCreate": fn(Object) -> Object;
    compile = c"WasmEdge_CompilerCompileFromBytes": fn(Object, RawBytes, *const c_char) -> RawResult;
}

impl Library {
    /// Compiles `module` into the file `output`, which is made, as are others beside it.
    pub fn compile(&self, module: &[u8], output: &CString, level: Level, options: Options) -> Result<(), Failure> {
        let failed = |message: String| Failure { message };
        let functions = Functions::resolve(self.handle)
            .map_err(|symbol| failed(format!("this engine has no compiler ({symbol} is missing)")))?;
        let length = u32::try_from(module.len()).map_err(|_| failed("larger than 4 GiB".to_owned()))?;
        let level = match level {
            Level::O0 => 0,
            Level::O1 => 1,
            Level::O2 => 2,
            Level::O3 => 3,
            Level::Os => 4,
            Level::Oz => 5,
        };
        // SAFETY: the objects are created here and used by the functions that are declared for them; null is checked before
        // use; the module's bytes and the path, which ends with a zero byte, outlive the call.
        unsafe {
            let configure = (self.functions.configure_create)();
            if configure.is_null() {
                return Err(failed("WasmEdge_ConfigureCreate failed".to_owned()));
            }
            (functions.configure_level)(configure, level);
            (functions.configure_format)(configure, NATIVE);
            (functions.configure_cost)(configure, options.cost);
            (functions.configure_count)(configure, options.count);
            let compiler = (functions.create)(configure);
            if compiler.is_null() {
                return Err(failed("this engine was built without its compiler".to_owned()));
            }
            let bytes = RawBytes {
                length,
                bytes: module.as_ptr(),
            };
            self.check((functions.compile)(compiler, bytes, output.as_ptr()))
        }
    }
}
