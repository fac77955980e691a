def group_names(source, spec):
  raise NotImplementedError
