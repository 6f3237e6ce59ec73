//! The C interface of `libwasmedge.so.0`, loaded at run time: the only unsafe code of this crate, beside a few calls in
//! `process`.
//!
//! Types and values are those of `wasmedge/wasmedge.h` of 0.14.1 and of 0.17.1, compared field by field. What differs
//! between the two and is used here: `ConfigureSetMaxMemoryPage` takes a `uint32_t` in 0.14 and a `uint64_t` in 0.17
//! (one integer register in both calling conventions that matter, x86-64 and AArch64, whose callee reads the low half in
//! 0.14; the values passed fit in 17 bits). Enumerations were renumbered (proposals, error codes of the loader and the
//! validator), so of those only the result codes 0 and 1 are used, equal in both.
//!
//! Nothing that is created here is deleted: the process ends with the guest.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::marker::PhantomData;
use std::ptr::{null, null_mut};

/// `WasmEdge_ErrCode_Terminated`: the guest called `proc_exit`.
const TERMINATED: u32 = 1;

/// An opaque object of the library.
type Object = *mut c_void;

/// `WasmEdge_Result`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawResult {
    code: u32,
}

/// `WasmEdge_String`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawString {
    length: u32,
    bytes: *const c_char,
}

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)* }

        impl Functions {
            /// Fills the table; the error is the name of the function that is missing.
            fn resolve(handle: Object) -> Result<Self, &'static str> {
                Ok(Self { $($field: {
                    const NAME: &CStr = $symbol;
                    // SAFETY: the handle came from dlopen and is never closed; the name ends with a zero byte.
                    let address = unsafe { libc::dlsym(handle, NAME.as_ptr()) };
                    if address.is_null() {
                        return Err(NAME.to_str().unwrap_or_default());
                    }
                    // SAFETY: the library's headers declare a function of this name with the type of the field (see
                    // the head of this file), and an object and a function pointer are of one size wherever dlsym is.
                    unsafe { std::mem::transmute::<Object, unsafe extern "C" fn($($argument),*) $(-> $result)?>(address) }
                },)* })
            }
        }
    };
}

functions! {
    version_get = c"WasmEdge_VersionGet": fn() -> *const c_char;
    log_off = c"WasmEdge_LogOff": fn();
    result_message = c"WasmEdge_ResultGetMessage": fn(RawResult) -> *const c_char;
    result_code = c"WasmEdge_ResultGetCode": fn(RawResult) -> u32;
    configure_create = c"WasmEdge_ConfigureCreate": fn() -> Object;
    configure_interpreter = c"WasmEdge_ConfigureSetForceInterpreter": fn(Object, bool);
    configure_pages = c"WasmEdge_ConfigureSetMaxMemoryPage": fn(Object, u64);
    store_create = c"WasmEdge_StoreCreate": fn() -> Object;
    loader_create = c"WasmEdge_LoaderCreate": fn(Object) -> Object;
    loader_parse = c"WasmEdge_LoaderParseFromBuffer": fn(Object, *mut Object, *const u8, u32) -> RawResult;
    validator_create = c"WasmEdge_ValidatorCreate": fn(Object) -> Object;
    validator_validate = c"WasmEdge_ValidatorValidate": fn(Object, Object) -> RawResult;
    executor_create = c"WasmEdge_ExecutorCreate": fn(Object, Object) -> Object;
    executor_register = c"WasmEdge_ExecutorRegisterImport": fn(Object, Object, Object) -> RawResult;
    executor_instantiate = c"WasmEdge_ExecutorInstantiate": fn(Object, *mut Object, Object, Object) -> RawResult;
    executor_invoke =
        c"WasmEdge_ExecutorInvoke": fn(Object, Object, *const c_void, u32, *mut c_void, u32) -> RawResult;
    find_function = c"WasmEdge_ModuleInstanceFindFunction": fn(Object, RawString) -> Object;
    wasi_create = c"WasmEdge_ModuleInstanceCreateWASI":
        fn(*const *const c_char, u32, *const *const c_char, u32, *const *const c_char, u32) -> Object;
    wasi_init = c"WasmEdge_ModuleInstanceInitWASI":
        fn(Object, *const *const c_char, u32, *const *const c_char, u32, *const *const c_char, u32);
    plugin_load = c"WasmEdge_PluginLoadFromPath": fn(*const c_char);
    plugin_count = c"WasmEdge_PluginListPluginsLength": fn() -> u32;
    wasi_exit_code = c"WasmEdge_ModuleInstanceWASIGetExitCode": fn(Object) -> u32;
}

/// The loaded library, silenced.
pub struct Library {
    functions: Functions,
}

/// Why a file isn't the library.
pub enum LoadError {
    /// In the words of dlerror(3).
    Load(String),
    /// It lacks this function.
    Symbol(&'static str),
}

/// A result of the engine that isn't success.
#[derive(Debug)]
pub struct Failure {
    /// In the engine's words.
    pub message: String,
}

/// How a guest that was started ended.
pub enum End {
    /// `_start` returned, or the guest called `proc_exit` with this.
    Exit(u32),
    /// It trapped.
    Trap(Failure),
}

impl Library {
    /// Loads `name`, a path or a bare name that the dynamic loader looks for.
    pub fn load(name: &CStr) -> Result<Self, LoadError> {
        // Lazily bound: of the thousands of functions that the engine's LLVM offers, interpreting calls next to none.
        // SAFETY: the name ends with a zero byte. The library's initialisers are run: it is the engine that the
        // installation trusts, found before anything of the container could change what is found.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        if handle.is_null() {
            return Err(LoadError::Load(last_error()));
        }
        let library = Self {
            functions: Functions::resolve(handle).map_err(LoadError::Symbol)?,
        };
        // Its log goes to stdout by default, which is the guest's.
        // SAFETY: takes nothing, returns nothing.
        unsafe { (library.functions.log_off)() };
        Ok(library)
    }

    /// Loads a plugin, whose modules every machine that is made from then on has; whether there is one in that file. It is
    /// native code, and its initialisers are run.
    pub fn load_plugin(&self, path: &CStr) -> bool {
        // SAFETY: takes nothing, returns a number.
        let before = unsafe { (self.functions.plugin_count)() };
        // SAFETY: the path ends with a zero byte. What is loaded is a file that the administrator named, and that the caller
        // has found to be nobody else's.
        unsafe { (self.functions.plugin_load)(path.as_ptr()) };
        // SAFETY: as above.
        unsafe { (self.functions.plugin_count)() > before }
    }

    /// The library's version, like `0.17.1`.
    pub fn version(&self) -> String {
        // SAFETY: returns a static string.
        unsafe { text((self.functions.version_get)()) }
    }

    fn check(&self, result: RawResult) -> Result<(), Failure> {
        if result.code == 0 {
            Ok(())
        } else {
            Err(self.failure(result))
        }
    }

    fn failure(&self, result: RawResult) -> Failure {
        // SAFETY: returns a static string for any code.
        let message = unsafe { text((self.functions.result_message)(result)) };
        Failure { message }
    }
}

/// Everything that one module needs to run, with WASI, interpreted.
///
/// Not the engine's own "VM", which puts the same parts together: that one also makes the host modules of every plugin the
/// engine knows of, in case the guest imports one, which takes four times as long as all of this.
pub struct Machine<'library> {
    library: &'library Library,
    store: Object,
    loader: Object,
    validator: Object,
    executor: Object,
    wasi: Object,
    /// The parsed module, once [`Machine::load`] has succeeded; null before.
    module: Object,
    /// The module in the store, once [`Machine::instantiate`] has succeeded; null before.
    instance: Object,
    _not_sync: PhantomData<Object>,
}

impl<'library> Machine<'library> {
    /// Makes one whose memories can't grow beyond `pages`, if given.
    pub fn new(library: &'library Library, pages: Option<u32>) -> Result<Self, Failure> {
        let functions = &library.functions;
        let made = |object: Object, call: &str| match object.is_null() {
            true => Err(Failure {
                message: format!("{call} failed"),
            }),
            false => Ok(object),
        };
        // SAFETY: the objects are created here and used by the functions that are declared for them; null is checked
        // before use; null statistics are none; arrays of length 0 are not looked at.
        unsafe {
            let configure = made((functions.configure_create)(), "WasmEdge_ConfigureCreate")?;
            (functions.configure_interpreter)(configure, true);
            if let Some(pages) = pages {
                (functions.configure_pages)(configure, pages.into());
            }
            let wasi = (functions.wasi_create)(null(), 0, null(), 0, null(), 0);
            let machine = Self {
                library,
                store: made((functions.store_create)(), "WasmEdge_StoreCreate")?,
                loader: made((functions.loader_create)(configure), "WasmEdge_LoaderCreate")?,
                validator: made((functions.validator_create)(configure), "WasmEdge_ValidatorCreate")?,
                executor: made(
                    (functions.executor_create)(configure, null_mut()),
                    "WasmEdge_ExecutorCreate",
                )?,
                wasi: made(wasi, "WasmEdge_ModuleInstanceCreateWASI")?,
                module: null_mut(),
                instance: null_mut(),
                _not_sync: PhantomData,
            };
            library.check((functions.executor_register)(
                machine.executor,
                machine.store,
                machine.wasi,
            ))?;
            Ok(machine)
        }
    }

    /// Parses a module. The engine keeps nothing of `module`.
    pub fn load(&mut self, module: &[u8]) -> Result<(), Failure> {
        let Ok(length) = u32::try_from(module.len()) else {
            return Err(Failure {
                message: "larger than 4 GiB".to_owned(),
            });
        };
        let parse = self.library.functions.loader_parse;
        // SAFETY: the loader lives; pointer and length are of one slice, which outlives the call; the result goes to a
        // field of this object.
        self.library
            .check(unsafe { parse(self.loader, &mut self.module, module.as_ptr(), length) })
    }

    /// Validates what was loaded.
    pub fn validate(&mut self) -> Result<(), Failure> {
        // SAFETY: the validator lives; without a module (null), it answers with an error.
        self.library
            .check(unsafe { (self.library.functions.validator_validate)(self.validator, self.module) })
    }

    /// Sets what the guest gets by WASI. A preopen is `GUEST:HOST`.
    pub fn wasi(&mut self, args: &[CString], env: &[CString], preopens: &[CString]) {
        let pointers = |strings: &[CString]| strings.iter().map(|string| string.as_ptr()).collect::<Vec<_>>();
        let (args, env, preopens) = (pointers(args), pointers(env), pointers(preopens));
        // SAFETY: the WASI module lives; every pointer is to a string that ends with a zero byte
        // and outlives the call, which copies; the lengths are those of the arrays, far below 2^32.
        unsafe {
            (self.library.functions.wasi_init)(
                self.wasi,
                args.as_ptr(),
                args.len() as u32,
                env.as_ptr(),
                env.len() as u32,
                preopens.as_ptr(),
                preopens.len() as u32,
            );
        }
    }

    /// Links the module and runs its start section, if it has one.
    pub fn instantiate(&mut self) -> Result<(), Failure> {
        let instantiate = self.library.functions.executor_instantiate;
        // SAFETY: executor and store live; without a validated module, it answers with an error; the result goes to a field
        // of this object.
        self.library
            .check(unsafe { instantiate(self.executor, &mut self.instance, self.store, self.module) })
    }

    /// Runs the exported function `name`, which takes and returns nothing.
    pub fn execute(&mut self, name: &'static str) -> End {
        let functions = &self.library.functions;
        let raw = RawString {
            length: name.len() as u32,
            bytes: name.as_ptr().cast(),
        };
        // SAFETY: without an instance (null), none is found; the name is a static string.
        let function = unsafe { (functions.find_function)(self.instance, raw) };
        if function.is_null() {
            return End::Trap(Failure {
                message: format!("there is no function {name:?}"),
            });
        }
        // SAFETY: the executor lives, the function is of its instance; no parameters and no results are passed, so their
        // arrays may be null.
        let result = unsafe { (functions.executor_invoke)(self.executor, function, null(), 0, null_mut(), 0) };
        // SAFETY: takes any result.
        match unsafe { (functions.result_code)(result) } {
            0 => End::Exit(0),
            // SAFETY: the WASI module lives.
            TERMINATED => End::Exit(unsafe { (functions.wasi_exit_code)(self.wasi) }),
            _ => End::Trap(self.library.failure(result)),
        }
    }
}

/// What went wrong in the last call of the dl family.
fn last_error() -> String {
    // SAFETY: dlerror returns null or a string that lives until the next such call by this thread.
    unsafe { text(libc::dlerror()) }
}

/// Copies a string of the library.
///
/// # Safety
/// `string` is null or points to bytes that end with a zero byte and live during the call.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
