"""The device's side: runs a bundle with numpy, onnxruntime and tokenizers alone.

    from edgedistill.edge import Student
    student = Student.load("bundle")
    student.answer("Tom has 3 apples and buys 4 more. How many has he?")   # Answer(text, value, confidence)
"""

from edgedistill.edge.student import Answer, Student

__all__ = ["Answer", "Student"]
