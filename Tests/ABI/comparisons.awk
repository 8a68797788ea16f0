# Turns the shim's uAPI headers into the list of comparisons that abi-check.c includes.

# Of the shim, not of the kernel: limits of its own, and classes, which the kernel does not export.
BEGIN {
  own["VFIO_IRQ_INLINE"]; own["VFIO_HOT_RESET_GROUPS"]; own["VFIO_FEATURE_INLINE"]
  minus_one["VFIO_PCI_DEVID_NOT_OWNED"]
  # A field that has two names in the kernel, and the one structure that C itself pads.
  kernel_name["iommu_hw_info.data_type"] = "out_data_type"
  padding["vfio_iommu_type1_info_cap_migration"] = 4
}

/^#define +CI_(IOMMU|IOMMUFD|VFIO|PCI)_/ {
  name = substr($2, 4)
  if (name ~ /\(/ || name in own) next
  if (name ~ /^PCI_(BASE_)?CLASS_/ && name !~ /^PCI_CLASS_(REVISION|PROG|DEVICE)$/) next
  print (name in minus_one ? "CONSTANT32" : "CONSTANT") "(" name ")"
}

/^ +CI_[A-Z0-9a-z_]+ = _IO\(/ { print "REQUEST(" substr($1, 4) ")" }

/^struct ci_(iommu|iommufd|vfio)_[a-z0-9_]+ [{]/ {
  type = substr($2, 4)
  print "SIZE(" type ")"
  next
}

type != "" && /^}/ {
  print "WHOLE(" type ", " (type in padding ? padding[type] : 0) ")"
  type = ""
  next
}

# "  uint32_t size, idr[6];  // why": all words but the type, without array lengths and qualifiers.
type != "" {
  sub(/\/\/.*/, "")
  sub(/^ *(struct )?[a-z0-9_]+ /, "")
  gsub(/\*|_Nullable|_Nonnull|\[[0-9]+\]|;| /, "")
  count = split($0, fields, ",")
  for (i = 1; i <= count; i++) {
    field = fields[i]
    full = type "." field
    if (field == "") continue
    if (full in kernel_name) print "FIELD_AS(" type ", " field ", " kernel_name[full] ")"
    else print "FIELD(" type ", " field ")"
  }
}
