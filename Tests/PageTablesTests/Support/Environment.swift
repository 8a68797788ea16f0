import Glibc

/// A variable of the environment that lengthens or repeats a test.
func environment(_ name: String) -> String? { unsafe getenv(name).map { unsafe String(cString: $0) } }
