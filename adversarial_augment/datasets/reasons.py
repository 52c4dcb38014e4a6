"""What other libraries' exceptions say, fit for a message of one line."""

import PIL


def one_line(error: BaseException) -> str:
  """Returns the text of an exception without line breaks and at most 200 characters long, or else its kind."""
  if isinstance(error, PIL.UnidentifiedImageError):  # its text is the address of an object
    return 'it is of no kind of picture that is read here'
  return ' '.join(str(error).split())[:200] or type(error).__name__
