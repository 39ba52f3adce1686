"""What two processes must agree on: subjects, messages, errors. No I/O, no dependency on any other part."""
