@_exported public import AddressSpace
