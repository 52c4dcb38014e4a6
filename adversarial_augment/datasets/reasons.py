"""What other libraries' exceptions say, fit for a message of one line."""


def one_line(error: BaseException) -> str:
  """Returns the text of an exception without line breaks and at most 200 characters long, or else its kind."""
  return ' '.join(str(error).split())[:200] or type(error).__name__
